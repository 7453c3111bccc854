"""Answers that fit a JSON schema: at every token, the model chooses among those after which one is possible.

schema          from a JSON schema to an automaton, which reads the texts that fit it
texts, numbers  what JSON texts are made of
automaton       finite automata over bytes
vocabulary      which tokens an automaton lets pass: the mask over logits, so that the answer ends in time
"""
