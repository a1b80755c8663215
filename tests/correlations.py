"""The correlation that the recommended penalty squares, by torch.cov and autograd alone."""

import torch


def correlations(samples_SM):
    """Correlate every two columns, each of a variance larger by BatchNorm's ε: (M, M)."""
    covariance = torch.cov(samples_SM.T, correction=0)
    lengths = (covariance.diagonal() + torch.nn.BatchNorm1d(1).eps).sqrt()
    return covariance / lengths / lengths[:, None]


def mean_square(samples_SM):
    """Average their squares over all pairs i ≠ j."""
    of_pairs = correlations(samples_SM)
    return of_pairs[~torch.eye(len(of_pairs), dtype=torch.bool)].square().mean()
