"""A few of the nodes from whose values those of all others follow: an interpolative decomposition of the form."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from risfast.ops.dense import to_classes, to_images
from risfast.ops.domain import NodeSet

_MOST_NODES = 2048  # of a plane: finding a skeleton takes time that grows with their cube
_MOST_PLANES = 8  # that are looked at
_TESTS = 32  # random forms by which a skeleton is checked
_SURPLUS = 48  # random forms beyond the number of nodes kept that the matrices are fitted to
_WORTHWHILE = 0.85  # nodes kept, as a fraction of all, from which on nothing is gained


def _random_forms(nodes: NodeSet, count: int) -> Tensor:
    """About so many forms on the nodes of random planes, by class.

    -> (classes, half G_az * half G_el, count)
    """
    # Of the two kinds by which nodes are checked (interpolation.py): random forms, and those of random sources.
    generator = torch.Generator().manual_seed(0)  # a plan must be the same every time
    d, o, n = nodes.domain, nodes.offsets, nodes.domain.n_elements
    planes = torch.linspace(0, d.range.numel() - 1, min(d.range.numel(), _MOST_PLANES)).round().long()
    each = -(-count // (2 * len(planes)))
    azimuth, elevation = nodes.azimuth.values[:, None], nodes.elevation.values
    forms = []
    for plane in planes:
        a = d.mirror.transform(d.steering(azimuth, elevation, d.range[plane])).flatten(0, 1)
        x, y = torch.randn(2, n, each, generator=generator, dtype=torch.complex128) * 2**0.25 * n**-0.5
        at = [torch.randint(axis.numel(), (each,), generator=generator) for axis in (d.azimuth, d.elevation)]
        for index, axis in zip(at, (d.azimuth, d.elevation), strict=True):
            index[0] = axis.numel() // 2  # where errors are most in phase
        source = d.mirror.transform(d.steering(d.azimuth[at[0]], d.elevation[at[1]], d.range[plane])).mH * n**-0.75
        x, y = torch.cat([x, source], 1), torch.cat([y, source], 1)
        # The part of class s xor t takes the vectors of class s from one side and of class t from the other.
        u, v = ([a[:, o[c] : o[c + 1]] @ w[o[c] : o[c + 1]] for c in range(4)] for w in (x, y))
        products = [torch.stack([(u[s].conj() * v[s ^ c]).real for s in range(4)]).sum(0) for c in nodes.classes]
        forms.append(torch.stack(products))
    shuffled = torch.randperm(2 * each * len(planes), generator=generator)
    return torch.cat(forms, -1)[..., shuffled]


class Skeleton:
    """Nodes that are kept, the same on every plane, and the matrices from them to all nodes.

    chosen (S,) Indices of nodes in the order (azimuth, elevation), matrices (classes, S, half G_az * half G_el)
    """

    def __init__(self, nodes: NodeSet, chosen: Tensor, matrices: Tensor, keep: bool) -> None:
        self.nodes, self.matrices = nodes, matrices.to(nodes.dtype.to_real())
        self.dtype, self.offsets, self.images, self.classes = nodes.dtype, nodes.offsets, nodes.images, nodes.classes
        half, planes = nodes.elevation.half, nodes.domain.range.numel()
        azimuth, elevation = chosen // half * nodes.columns, chosen % half
        self.index = (azimuth + elevation + torch.arange(planes)[:, None] * half).flatten()  # of nodes, by plane
        self.count = self.index.numel()
        self._kept = nodes.steering_at(self.index) if keep else None

    @classmethod
    def find(cls, nodes: NodeSet, tolerance: float, keep: bool) -> Skeleton | None:
        """The fewest nodes that reproduce all others to the tolerance; None where most would be needed."""
        n = nodes.azimuth.half * nodes.elevation.half
        if n > _MOST_NODES:
            return None
        # The forms that an array can make span far fewer dimensions than there are nodes. Rows that partial pivoting
        # picks in an LU factorisation of random forms determine all others, and its pivots bound what is left (Y. Dong,
        # P.-G. Martinsson, "Simpler is better: a comparative study of randomized pivoting algorithms for CUR and
        # interpolative decompositions", Adv. Comput. Math. 49, 2023). One skeleton serves every class: that of the even
        # part, the largest.
        forms = _random_forms(nodes, n + _TESTS + _SURPLUS)
        tests, samples = forms[..., :_TESTS], forms[..., _TESTS:]
        factor, pivots, _ = torch.linalg.lu_factor_ex(samples[0])
        order = torch.arange(n)
        for i, pivot in enumerate((pivots - 1).tolist()):
            order[[i, pivot]] = order[[pivot, i]]
        # One QR factorisation of the ordered forms holds the least-squares fits of all numbers of nodes. A class may
        # have a smaller rank than the even one: rows of a tenth of the tolerance keep its matrix small.
        ridge = (0.1 * tolerance * torch.eye(n, dtype=samples.dtype)).expand(len(samples), -1, -1)
        r = torch.linalg.qr(torch.cat([samples[:, order].mT, ridge], 1), mode="r").R
        count = int((factor.diagonal().abs() > tolerance).sum() * 0.9)
        while 0 < count < _WORTHWHILE * n:
            fit = torch.linalg.solve_triangular(r[:, :count, :count], r[:, :count, count:], upper=True)
            rest = tests[:, order[count:]] - fit.mT @ tests[:, order[:count]]
            if float(rest.abs().max()) <= tolerance:
                matrices = torch.zeros(len(r), count, n, dtype=r.dtype)
                matrices[:, :, order[:count]] = torch.eye(count, dtype=r.dtype)
                matrices[:, :, order[count:]] = fit
                return cls(nodes, order[:count], matrices, keep)
            count = math.ceil(1.04 * count)
        return None

    @property
    def cached_bytes(self) -> int:
        """Bytes of the stored matrices and steering vectors."""
        kept = (self.matrices,) if self._kept is None else (self.matrices, self._kept)
        return sum(tensor.numel() * tensor.element_size() for tensor in kept)

    def steering(self, low: int, high: int) -> Tensor:
        """Steering vectors of some nodes, in the mirror basis.

        -> (high - low, N)
        """
        return self.nodes.steering_at(self.index[low:high]) if self._kept is None else self._kept[low:high]

    def to_nodes(self, by_class: Tensor) -> Tensor:
        """Values at all nodes and their images from the parts of a form on the skeleton.

        by_class (classes, b, R * S) -> (images, b, R, half G_az, half G_el)
        """
        n = self.nodes
        values = by_class.reshape(len(by_class), -1, self.matrices.shape[1]) @ self.matrices
        shape = (self.images, by_class.shape[1], n.domain.range.numel(), n.azimuth.half, n.elevation.half)
        return to_images(self, values).reshape(shape)

    def from_nodes(self, images: Tensor) -> Tensor:
        """Adjoint of :meth:`to_nodes`."""
        b = images.shape[1]
        classes = to_classes(self, images).reshape(len(self.classes), -1, self.matrices.shape[2])
        return (classes @ self.matrices.mT).reshape(len(self.classes), b, self.count)
