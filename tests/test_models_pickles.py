"""Pickled modules load when they are made of torch's own classes; nothing in a pickle ever runs."""

from __future__ import annotations

import builtins
import functools
import io
import os
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import fx, nn

from compress.errors import ModelError, UntrustedPickleError
from compress.models import ensure_operators
from compress.models.loading import load

SIDE = 64  # of an image, in pixels

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=3):
        super().__init__()
        self.fc = nn.Linear(4, width)

    def forward(self, x):
        return self.fc(x)

def not_a_class():
    return None
"""


class Reduced:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


def load_from_bytes(marker: Path) -> Reduced:
    inner = io.BytesIO()
    torch.save(touch(marker), inner)
    return Reduced(torch.storage._load_from_bytes, inner.getvalue())


def hub(marker: Path) -> Reduced:
    (marker.parent / "hubconf.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    return Reduced(torch.hub.load, str(marker.parent), "x", "local")


def touch(marker: Path) -> Reduced:
    return Reduced(os.system, f"touch {marker}")


def code(marker: Path) -> str:
    return f"open({str(marker)!r}, 'w').close()"


def in_a_module(marker: Path) -> nn.Module:
    module = nn.Sequential(nn.Linear(2, 2))
    module[0].extra = touch(marker)
    return module


EVIL: dict[str, tuple[Callable[[Path], Any], str]] = {
    "os.system": (touch, "posix.system"),
    "inside a module": (in_a_module, "posix.system"),
    "inside a state dict": (lambda marker: {"w": torch.ones(1), "x": touch(marker)}, "posix.system"),
    "builtins.eval": (lambda marker: Reduced(builtins.eval, code(marker)), "builtins.eval"),
    "builtins.exec": (lambda marker: Reduced(builtins.exec, code(marker)), "builtins.exec"),
    "getattr": (lambda marker: Reduced(getattr, nn.Linear(1, 1), "cuda"), "builtins.getattr"),
    "partial": (lambda marker: Reduced(functools.partial(os.system, f"touch {marker}")), "posix.system"),
    "torch.hub.load": (hub, "torch.hub.load"),
    "torch.storage._load_from_bytes": (load_from_bytes, "torch.storage._load_from_bytes"),
    "torch.load": (lambda marker: Reduced(torch.load, str(marker)), "torch.serialization.load"),
    "a harmless function of torch": (
        lambda marker: Reduced(nn.functional.relu, torch.ones(1)),
        "torch.nn.functional.relu",
    ),
}


@pytest.mark.parametrize("kind", EVIL)
def test_a_pickle_that_wants_a_function_is_refused_by_name_and_runs_nothing(tmp_path: Path, kind: str) -> None:
    make, wanted = EVIL[kind]
    marker = tmp_path / "marker"
    torch.save(make(marker), tmp_path / "model.pt")
    with pytest.raises(UntrustedPickleError) as caught:
        load(tmp_path / "model.pt")
    assert not marker.exists()
    assert wanted in str(caught.value)
    assert "--trust " not in str(caught.value)
    assert str(caught.value).count("\n") == 1


def test_old_and_plain_pickles_run_nothing_either(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    torch.save(touch(marker), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(touch(marker)))
    for name in ("old.pt", "plain.pt"):
        with pytest.raises(UntrustedPickleError, match=r"posix\.system"):
            load(tmp_path / name)
    assert not marker.exists()


def test_the_attack_of_these_tests_does_run_when_the_pickle_is_trusted(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    torch.save(touch(marker), tmp_path / "model.pt")
    with pytest.raises(ModelError, match="holds a int, not a model"):
        load(tmp_path / "model.pt", trust_pickle=True)
    assert marker.exists()


def test_an_old_file_with_a_whole_module_loads_only_when_it_is_trusted(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(nn.Linear(2, 3), path, _use_new_zipfile_serialization=False)
    with pytest.raises(UntrustedPickleError, match=r"torch\.save\(model\.state_dict\(\), path\)"):
        load(path)
    assert isinstance(load(str(path), trust_pickle=True).module, nn.Linear)


def with_pickle(path: Path, content: bytes) -> Path:
    """A torch.save file whose pickle is ``content``."""
    torch.save({}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, content if name.endswith("data.pkl") else data)
    return path


@pytest.mark.parametrize(
    "name",
    [
        "torch.nn.modules.module\ninspect.os.system",  # through what a module of torch imports
        "torch.nn.modules.module.inspect.os\nsystem",
        "torch.nn.functional\nrelu",
        "torch.nn.modules.module\n_EXTRA_STATE_KEY_SUFFIX",
        "torch.nn.modules.module.Module\n__init__",
        "torchvision.models\nget_model",
        "torch.jit._script\nRecursiveScriptModule",
    ],
)
def test_no_name_below_torch_leads_to_anything_but_a_module_class(tmp_path: Path, name: str) -> None:
    path = with_pickle(tmp_path / "model.pt", b"\x80\x02c" + name.encode() + b"\nq\x00.")
    with pytest.raises(UntrustedPickleError, match=name.replace("\n", ".")):
        load(path)


def test_a_pickled_partial_cannot_be_called_while_loading(tmp_path: Path) -> None:
    build = b"cfunctools\npartial\nctorch.nn.modules.linear\nIdentity\n\x85R"
    path = with_pickle(tmp_path / "model.pt", b"\x80\x02" + build + b")R.")
    with pytest.raises(UntrustedPickleError, match="reduce"):
        load(path)


def test_a_graph_module_is_refused_because_its_state_is_code(tmp_path: Path) -> None:
    torch.save(fx.symbolic_trace(nn.Sequential(nn.ReLU())), tmp_path / "model.pt")
    with pytest.raises(UntrustedPickleError, match="reduce_graph_module"):
        load(tmp_path / "model.pt")


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "efficientnet_b0", "vit_b_16", "swin_t"])
def test_a_whole_torchvision_model_loads_and_computes_the_same(tmp_path: Path, name: str) -> None:
    ensure_operators()
    from torchvision import models

    options = {"image_size": SIDE} if name == "vit_b_16" else {}
    model = models.get_model(name, weights=None, num_classes=4, **options).eval()
    torch.save(model, tmp_path / "model.pt")
    source = load(tmp_path / "model.pt")
    assert source.kind == "module"
    assert source.skips is None
    x = torch.randn(1, 3, SIDE, SIDE)
    with torch.no_grad():
        assert source.module is not None
        assert torch.equal(source.module(x), model(x))


def define_net(tmp_path: Path, name: str) -> type[nn.Module]:
    """The class Net, as if its module had been imported as ``name`` by the script that saves."""
    (tmp_path / "net.py").write_text(NET)
    namespace: dict[str, Any] = {"__name__": name}
    exec(NET, namespace)
    kind: type[nn.Module] = namespace["Net"]
    return kind


def save_net(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    kind = define_net(tmp_path, name)
    package = name.partition(".")[0]
    stand_in = ModuleType(name)
    stand_in.Net = kind  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, package, ModuleType(package))
    monkeypatch.setitem(sys.modules, name, stand_in)
    path = tmp_path / "model.pt"
    torch.save(kind(), path)
    monkeypatch.undo()
    return path


def test_an_unknown_class_is_refused_with_the_flag_that_would_trust_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_net(tmp_path, "mynets.small", monkeypatch)
    with pytest.raises(UntrustedPickleError) as caught:
        load(path)
    assert "--trust mynets.small.Net" in str(caught.value)
    assert "--factory" in str(caught.value)


def test_a_class_that_the_user_names_by_its_full_name_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_net(tmp_path, "net", monkeypatch)
    monkeypatch.chdir(tmp_path)
    source = load(path, trust=["net.Net"])
    assert type(source.module).__name__ == "Net"


def test_a_class_of_the_saving_script_is_trusted_from_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_net(tmp_path, "__main__", monkeypatch)
    with pytest.raises(UntrustedPickleError, match=r"--trust \./FILE\.py:Net"):
        load(path)
    source = load(path, trust=[f"{tmp_path}/net.py:Net"])
    assert source.module is not None
    assert source.module(torch.ones(1, 4)).shape == (1, 3)


def test_only_a_class_can_be_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "marker"
    torch.save(touch(marker), tmp_path / "evil.pt")
    with pytest.raises(ModelError, match="Only a class can be trusted"):
        load(tmp_path / "evil.pt", trust=["posix.system"])
    assert not marker.exists()


def test_trusting_one_class_does_not_let_another_global_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net.py").write_text(NET)
    marker = tmp_path / "marker"
    torch.save({"a": touch(marker)}, tmp_path / "evil.pt")
    with pytest.raises(UntrustedPickleError):
        load(tmp_path / "evil.pt", trust=[f"{tmp_path}/net.py:Net"])
    assert not marker.exists()


def test_a_file_beside_an_untrusted_model_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_net(tmp_path, "net", monkeypatch)
    marker = tmp_path / "marker"
    (tmp_path / "net.py").write_text(f"open({str(marker)!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UntrustedPickleError):
        load(path)
    assert not marker.exists()


def test_a_damaged_pickle_is_told_as_damage(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with_pickle(path, b"\x80\x02}q\x00X\xff\x00\x00\x00cut short.")
    with pytest.raises(ModelError, match="damaged"):
        load(path)
