"""Many questions about many pictures: each gets the answer that `ask` gives, and they share what they can.

row         what is asked, and what comes of it
answering   rows answered by one model (with pictures: each is encoded once)
spread      rows answered by many processes with Dask (with at_worker: what each of them does)
sources     rows from folders, lists and tables
output      answers in a file, with which a run that was interrupted goes on
"""
