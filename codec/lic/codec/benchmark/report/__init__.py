"""The report of results: one HTML page that needs no network, plots for papers, and tables.

`content` joins files of results, `deltas` compares their curves, `views` codes chosen pictures
again, `page` puts all of it into page.html, and `tables` and `plots` write it for other documents.
"""
