"""The api's side of a panic exit: `runner` and `child` start its process and follow its journal, `cut_off` goes on with
one that was killed, `halting` says what is halted, `watch` looks after all of it every second.
"""
