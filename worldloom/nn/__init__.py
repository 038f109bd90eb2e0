"""Pieces of networks that algorithms share: dense and normed layers, convolutions, ensembles,
two-hot and symlog distributions (``distributions``, ``symlog_bins``), optimizers, precision, weight
snapshots.
"""
