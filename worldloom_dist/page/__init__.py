"""The page of a run: what it does, or how it ended, in a browser and without a network.

    run folder --RunState--> JSON --page.html--> curves, throughput, what binds, films, faults

While a run lasts its metrics endpoint serves the page (:class:`PageApp`); ``worldloom report`` puts
page, numbers and films into one file. Both only read.
"""
