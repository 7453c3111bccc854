"""Watching a camera: pictures come in, a question is asked when something has changed, answers go out.

sources (with jpeg)  where pictures come from
gate                 whether a picture differs from the one that was asked about last
asking               who answers: a model in this process, or a server
readings             what kind of answer is wanted: text, a number, yes or no
outputs, mqtt        where answers go
loop                 all of them together
stopping             how a signal ends it
"""
