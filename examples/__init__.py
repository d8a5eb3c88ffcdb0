"""Programs that use the house from outside, over HTTP, the way anybody would."""
