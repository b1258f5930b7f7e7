"""All experts of a composition: per site the stacked A and B, ranks, scales, and who they belong to."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from radargate.errors import AdapterError, InactiveExpertError
from radargate.experts.adapters import Adapter, base_sites, read_adapter
from radargate.experts.files import CONFIG_FILE, DTYPES, WEIGHTS_FILE
from radargate.experts.fit import fit
from radargate.experts.heads import Head, with_head
from radargate.experts.names import PREFIX

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SiteBank:
    """The experts of one site.

    Attributes:
        A: [R, d_in], raw, in the widest dtype of the site's experts; [r, d_in] where all share it (hydra).
        B: [R, d_out], raw (the transposed B_i, stacked).
        experts: index of each expert into the bank's names, ascending.
        ranks: r_i of each.
        scales: LoRA scale s_i of each.
        dtypes: dtype of A and of B of each in its own file.
    """

    A: Tensor
    B: Tensor
    experts: tuple[int, ...]
    ranks: tuple[int, ...]
    scales: tuple[float, ...]
    dtypes: tuple[tuple[str, str], ...]

    def factors(self, position: int) -> tuple[Tensor, Tensor]:
        """A_i [r_i, d_in] and B_i [r_i, d_out] of the expert in one position."""
        start, rank = sum(self.ranks[:position]), self.ranks[position]
        rows = slice(start, start + rank)
        return (self.A if self.A.shape[0] == self.ranks[0] else self.A[rows]), self.B[rows]


@dataclass(frozen=True)
class ExpertBank:
    """Experts by site.

    Attributes:
        names: the experts' names, in the order given.
        sites: site name → its experts, in the base model's order.
        configs: each expert's adapter_config.json.
        facts: each expert's source, sha256 and tensor-name prefix.
    """

    names: tuple[str, ...]
    sites: dict[str, SiteBank]
    configs: dict[str, dict[str, Any]]
    facts: dict[str, dict[str, Any]]


def load_bank(
    adapters: Mapping[str, str | Path | Adapter], base: nn.Module, *, allow_inactive: bool = False
) -> ExpertBank:
    """Read adapters into one bank for a base model.

    Args:
        adapters: name → folder or Hub id, or what `read_adapter` made of it.
        base: the base model (with or without weights).
        allow_inactive: keep an expert that leaves every site unchanged (all B zero) or matches none, or whose file lacks layers
            that its config names.

    Raises:
        AdapterError: an adapter is refused; the message names it, the fault and the remedy.
        InactiveExpertError: an adapter matches no site or changes nothing.
    """
    if not adapters:
        raise AdapterError("no adapter was given; a composition needs at least one.")
    shapes = base_sites(base)
    read: list[Adapter] = []
    for name, source in adapters.items():
        adapter = read_adapter(str(name), source)
        try:
            adapter = fit(adapter, base, shapes, partial=allow_inactive)
        except InactiveExpertError:
            if not allow_inactive:
                raise
        for note in adapter.notes:
            logger.info(f"adapter {adapter.name!r}: {note}.")
        read.append(adapter)
    sites: dict[str, SiteBank] = {}
    active: set[int] = set()
    for site in shapes:
        present = [(i, adapter) for i, adapter in enumerate(read) if site in adapter.sites]
        if present:
            sites[site] = _site_bank(site, present, active)
    for index, adapter in enumerate(read):
        if index not in active and not allow_inactive:
            raise InactiveExpertError(
                f"adapter {adapter.name!r} changes nothing: B is zero at every site. It was never trained; leave it "
                "out (or allow it with `allow_inactive`)."
            )
    return ExpertBank(
        names=tuple(adapter.name for adapter in read),
        sites=sites,
        configs={adapter.name: adapter.config for adapter in read},
        facts={
            adapter.name: {
                "source": adapter.source,
                "sha256": adapter.file.sha256,
                "prefix": next(iter(adapter.sites.values())).prefix,
            }
            for adapter in read
        },
    )


def header_ranks(adapters: Mapping[str, str | Path | Adapter]) -> dict[str, dict[str, int]]:
    """Site → expert → rank, from the adapters' headers alone.

    Raises:
        AdapterError: an adapter is refused.
    """
    ranks: dict[str, dict[str, int]] = {}
    for name, source in adapters.items():
        for site, tensors in read_adapter(str(name), source).sites.items():
            ranks.setdefault(site, {})[str(name)] = tensors.rank
    return ranks


def check_equal_ranks(gate: str, ranks: Mapping[str, Mapping[str, int]]) -> None:
    """Raise `AdapterError` at the first site (site → expert → rank) whose experts differ in rank."""
    for site, table in ranks.items():
        if len(set(table.values())) > 1:
            found = ", ".join(f"{name!r} {rank}" for name, rank in table.items())
            raise AdapterError(
                f"{gate!r} with these options adds A and B of different experts to each other, which needs one rank, "
                f"but at {site} the ranks are: {found}. Use adapters of one rank, or a gate or form that mixes outputs."
            )


def _site_bank(site: str, present: Sequence[tuple[int, Adapter]], active: set[int]) -> SiteBank:
    dtypes = [(adapter.sites[site].A.dtype, adapter.sites[site].B.dtype) for _, adapter in present]
    widest = widest_dtype(dtypes)
    A, B = [], []
    for index, adapter in present:
        a, b = adapter.read(site)
        if bool(b.any()) and bool(a.any()):
            active.add(index)
        A.append(a.to(widest))
        B.append(b.T.to(widest))
    return SiteBank(
        A=torch.cat(A).contiguous(),
        B=torch.cat(B).contiguous(),
        experts=tuple(index for index, _ in present),
        ranks=tuple(adapter.sites[site].rank for _, adapter in present),
        scales=tuple(adapter.sites[site].scale for _, adapter in present),
        dtypes=tuple(dtypes),
    )


def widest_dtype(dtypes: Iterable[Iterable[str]]) -> torch.dtype:
    """The narrowest dtype that holds every given one exactly, from safetensors' names of A's and B's."""
    return functools.reduce(torch.promote_types, (DTYPES[name] for pair in dtypes for name in pair))


def write_expert(bank: ExpertBank, name: str, folder: str | Path, head: Head | None = None) -> None:
    """Write one expert back as a PEFT adapter folder, its tensors bit-equal to those it was read from.

    A trained head that it was read with stays with the composition; ``head`` is one to write beside it.

    Raises:
        AdapterError: no such expert, or the folder already holds an adapter.
    """
    if name not in bank.names:
        raise AdapterError(f"no expert {name!r} here. Experts: {', '.join(bank.names)}.")
    if bank.facts[name].get("converted"):
        raise AdapterError(f"{name!r} was converted to a common A and is no longer the adapter it was read from.")
    folder, index, prefix = Path(folder), bank.names.index(name), bank.facts[name]["prefix"]
    if (folder / CONFIG_FILE).exists():
        raise AdapterError(f"{folder} already holds an adapter; choose another folder.")
    tensors = {} if head is None else {f"{PREFIX}{key}": value.contiguous() for key, value in head.tensors.items()}
    for site, here in bank.sites.items():
        if index in here.experts:
            position = here.experts.index(index)
            for side, block, dtype in zip("AB", here.factors(position), here.dtypes[position], strict=True):
                rows = block.to("cpu", DTYPES[dtype])
                tensors[f"{prefix}{site}.lora_{side}.weight"] = (rows if side == "A" else rows.T).contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    config = with_head(bank.configs[name], head)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2))


class Bank(nn.Module):
    """Frozen A [R, d_in] and B [R, d_out] of one site, raw; scales and owners are derived from the site table."""

    def __init__(self, entry: dict[str, Any], d_in: int, d_out: int, rows: int) -> None:
        super().__init__()
        self.ranks = tuple(entry["ranks"])
        dtype = widest_dtype(entry["dtypes"])
        # parameters, not buffers: DDP would send buffers around on each forward
        self.A = nn.Parameter(torch.zeros(rows, d_in, dtype=dtype), requires_grad=False)
        self.B = nn.Parameter(torch.zeros(sum(self.ranks), d_out, dtype=dtype), requires_grad=False)
        self.scales = tuple(entry["scales"])
        self._scale: Tensor | None = None
        self._cast: tuple[Any, Tensor, Tensor] | None = None

    def scale(self, like: Tensor) -> Tensor:
        """σ: each expert's LoRA scale repeated r_i times, [R]."""
        if self._scale is None or self._scale.dtype != like.dtype or self._scale.device != like.device:
            flat = [s for s, r in zip(self.scales, self.ranks, strict=True) for _ in range(r)]
            with torch.inference_mode(False):  # what is kept must serve a training step too
                self._scale = torch.tensor(flat, dtype=like.dtype, device=like.device)
        return self._scale

    def inputs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x, A, B and σ in the dtype of the computation: float64 where x or the experts are, else float32."""
        wide = x.dtype == torch.float64 or self.A.dtype == torch.float64
        x = x.to(torch.float64 if wide else torch.float32)
        return x, *self.cast(x.dtype), self.scale(x)

    def cast(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A and B in the dtype of the computation; a frozen bank is converted once."""
        A, B = self.A, self.B
        if A.dtype == dtype:
            return A, B
        if A.requires_grad or torch.compiler.is_compiling():
            return A.to(dtype), B.to(dtype)
        key = (dtype, A.data_ptr(), B.data_ptr(), A._version, B._version)
        if self._cast is None or self._cast[0] != key:
            with torch.inference_mode(False):
                self._cast = (key, A.detach().to(dtype), B.detach().to(dtype))
        return self._cast[1:]
