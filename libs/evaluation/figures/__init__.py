"""From rows to figures with intervals, and to thresholds that are met or missed. Pure."""
