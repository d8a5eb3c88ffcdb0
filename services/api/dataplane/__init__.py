"""OpenAI's API under `/v1`, in the order of a request's way.

app        the ASGI app: path, key, headers, and who does what below
conduct    how a call ends: its client is told, its row is written, and the two agree
guard      ends the work when the client leaves or its time is up
call       one request under way, and what has become of it
upload     the body in; `inquiry`: checked; `callers`: within the limits of its key
reply_cache, flight   an answer given before, or being given now
forward    a place to ask, its answer back; `room`: prompts that fit nowhere
relay      a stream passed on, event by event; `stream`: what its events are; `answer`: the same of whole answers
outlet     what goes out to the client; `errors`: as OpenAI's clients expect them
accounting one row and the numbers of each request; `metrics`: their names
models     the list of models
"""
