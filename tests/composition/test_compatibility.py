"""The inner parts of PEFT, transformers and torch that are touched: each test names what a new version changed."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from packaging.requirements import Requirement
from packaging.version import Version
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.other import get_pattern_key
from transformers import DynamicCache, Trainer

from radargate.composition.layer import RadarLayer
from radargate.composition.model import RadarModel
from radargate.composition.registration import RADAR
from radargate.experts.lora_config import _HARMLESS, _REMEDIES, plain_lora
from radargate.training.loop import AnswerTrainer

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "compatibility.md").read_text()


def version(package):
    return f"{package} {importlib.metadata.version(package)}"


def parameters(owner, name):
    return [
        p
        for p in inspect.signature(
            inspect.getattr_static(owner, name).__get__(None, owner)
            if isinstance(inspect.getattr_static(owner, name), (classmethod, staticmethod))
            else getattr(owner, name)
        ).parameters
        if p != "self"
    ]


# what is overridden or called → its parameters as we rely on them
TUNER = {
    "_prepare_adapter_config": ["peft_config", "model_config"],
    "_check_new_adapter_config": ["config"],
    "_check_target_module_exists": ["peft_config", "key"],
    "_create_and_replace": [
        "peft_config",
        "adapter_name",
        "target",
        "target_name",
        "parent",
        "current_key",
        "parameter_name",
    ],
    "_pre_injection_hook": ["model", "config", "adapter_name"],
    "_mark_only_adapters_as_trainable": ["model"],
    "_cast_adapter_dtype": ["adapter_name", "autocast_adapter_dtype"],
    "_get_adapter_state_dict": ["model", "config", "adapter_name", "state_dict", "unwanted_adapter_names"],
    "_remove_adapter_name_from_key": ["key", "adapter_name"],
    "_remap_adapter_state_dict_for_load": ["model", "config", "adapter_name", "state_dict"],
    "_replace_module": ["parent", "child_name", "new_module", "child"],
}
TRAINER = {
    "_save_checkpoint": ["model", "trial"],
    "_load_from_checkpoint": ["resume_from_checkpoint", "model"],
    "_load_optimizer_and_scheduler": ["checkpoint"],
    "_load_rng_state": ["checkpoint"],
    "_get_train_sampler": ["train_dataset"],
    "create_optimizer": ["model"],
    "compute_loss": ["model", "inputs", "return_outputs", "num_items_in_batch"],
}


@pytest.mark.parametrize(
    ("package", "theirs", "ours", "name"),
    [("peft", BaseTuner, RadarModel, name) for name in TUNER]
    + [("transformers", Trainer, AnswerTrainer, name) for name in TRAINER],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_method_we_override_is_there_and_takes_what_it_took(package, theirs, ours, name):
    wanted = (TUNER if theirs is BaseTuner else TRAINER)[name]
    assert hasattr(theirs, name), (
        f"{version(package)} has no {theirs.__name__}.{name} any more; {ours.__name__} overrides it"
    )
    found = parameters(theirs, name)
    assert found == wanted, (
        f"{version(package)}: {theirs.__name__}.{name} takes {found}, {ours.__name__} was written for {wanted}"
    )
    assert f"`{name}`" in PAGE, f"docs/compatibility.md does not name {name}"


def test_a_peft_model_asks_its_tuner_for_hooks_around_each_call():
    source = inspect.getsource(PeftModel)
    assert "_enable_peft_forward_hooks(*args, **kwargs)" in source, (
        f"{version('peft')}: PeftModel asks for hooks in another way"
    )
    assert "`_enable_peft_forward_hooks`" in PAGE


@pytest.mark.parametrize("kind", ["CONFIG", "TUNER", "PREFIX"])
def test_pefts_tables_of_methods_are_plain_dicts_that_hold_ours(kind):
    mapping = importlib.import_module("peft.mapping")
    name = f"PEFT_TYPE_TO_{kind}_MAPPING"
    table = getattr(mapping, name, None)
    assert type(table) is dict, (
        f"{version('peft')}: peft.mapping.{name} is {type(table).__name__}, expected a dict to fill"
    )
    assert RADAR in table and "RADAR" in table, f"{version('peft')}: {name} forgot what was put into it"
    assert f"`{name}`" in PAGE


@pytest.mark.parametrize(
    "name",
    [
        "adapter_layer_names",
        "other_param_names",
        "active_adapters",
        "active_adapter",
        "disable_adapters",
        "set_adapter",
        "enable_adapters",
        "_disable_adapters",
    ],
)
def test_a_layers_attributes_are_still_those_of_peft(name):
    assert hasattr(BaseTunerLayer, name), f"{version('peft')}: BaseTunerLayer has no {name}; RadarLayer relies on it"
    layer = RadarLayer(torch.nn.Linear(4, 4), "site")
    assert hasattr(layer, name) and layer.disable_adapters is False
    assert f"`{name}`" in PAGE


def test_a_peft_model_lists_the_arguments_that_it_keeps_from_the_base(load_tiny):
    model = get_peft_model(load_tiny(), LoraConfig(target_modules=["q_proj"]))
    found = getattr(model, "special_peft_forward_args", None)
    assert isinstance(found, set), (
        f"{version('peft')}: PeftModel.special_peft_forward_args is {found!r}, expected a set"
    )
    assert "`special_peft_forward_args`" in PAGE


OLD_FIELDS = {"runtime_config", "auto_mapping", "peft_version"}  # in files of some versions, not fields of all


def test_every_field_of_a_lora_config_is_known_or_refused():
    """A field that a new PEFT adds is refused where it is set, until somebody has read what it does."""
    good = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    for name in sorted(f.name for f in fields(LoraConfig) if f.name not in _HARMLESS):
        with pytest.raises(ValueError, match=name):
            plain_lora({**good, name: "something"})
    gone = sorted((_HARMLESS | set(_REMEDIES)) - {f.name for f in fields(LoraConfig)} - OLD_FIELDS)
    assert not gone, f"{version('peft')}: LoraConfig has no {', '.join(gone)} any more"


@pytest.mark.parametrize(
    "key", ["q_proj", "layers.1.self_attn.q_proj", r"layers\.1\..*v_proj", "proj", "1.self_attn.v_proj", ".*", "q.proj"]
)
def test_patterns_mean_what_they_mean_to_peft(key):
    names = [f"model.layers.{i}.self_attn.{n}" for i in (0, 1, 11) for n in ("q_proj", "v_proj")] + [
        "q_proj",
        "qproj",
        "xq_proj",
    ]
    ours = plain_lora({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "rank_pattern": {key: 7}}).sizes(names)
    for name in names:
        theirs = {key: 7}.get(get_pattern_key([key], name), 2)
        assert ours[name][0] == theirs, (
            f"{version('peft')} reads {key!r} for {name} as rank {theirs}, we as {ours[name][0]}"
        )
    assert "`get_pattern_key`" in PAGE


@pytest.mark.parametrize(
    "place",
    [
        "peft.tuners.tuners_utils:check_target_module_exists",
        "peft.utils.merge_utils:ties",
        "peft.utils.merge_utils:dare_ties",
        "peft.utils.merge_utils:dare_linear",
    ],
)
def test_a_function_we_import_from_inside_peft_is_there(place):
    module, _, name = place.partition(":")
    assert hasattr(importlib.import_module(module), name), f"{version('peft')}: {module} has no {name} any more"
    assert f"`{name}`" in PAGE


def test_pefts_classes_for_classifiers_add_to_the_names_of_a_config():
    from peft import PeftModelForSequenceClassification
    from peft.utils.other import ModulesToSaveWrapper

    source = inspect.getsource(PeftModelForSequenceClassification.__init__)
    assert "peft_config.modules_to_save.extend(" in source, f"{version('peft')}: heads are added in another way"
    wrapper = ModulesToSaveWrapper(torch.nn.Linear(2, 2), "default")
    assert set(wrapper.modules_to_save) == {"default"} and isinstance(wrapper.original_module, torch.nn.Linear)
    assert "`ModulesToSaveWrapper`" in PAGE


def test_classes_stand_in_the_tables_of_transformers():
    from transformers import LlamaForCausalLM

    from radargate.base_models.kinds import _CLASSES, _tasks

    modeling_auto = importlib.import_module("transformers.models.auto.modeling_auto")
    for table in (name for names in _CLASSES.values() for name in names):
        assert getattr(modeling_auto, table, None), f"{version('transformers')}: modeling_auto has no {table}"
    assert _tasks()["LlamaForCausalLM"] == "CAUSAL_LM" and "`LOSS_MAPPING`" in PAGE
    assert LlamaForCausalLM.main_input_name == "input_ids"


def test_a_hook_of_accelerate_knows_weights_and_device():
    from accelerate import cpu_offload

    layer = cpu_offload(torch.nn.Sequential(torch.nn.Linear(2, 2)), execution_device=torch.device("cpu"))[0]
    assert layer.weight.is_meta and layer._hf_hook.weights_map["weight"].shape == (2, 2), version("accelerate")
    assert torch.device(layer._hf_hook.execution_device) == torch.device("cpu") and "`weights_map`" in PAGE


def test_a_cache_has_layers_of_keys_and_values(load_tiny):
    cache = DynamicCache()
    load_tiny()(input_ids=torch.zeros(1, 3, dtype=torch.long), past_key_values=cache, use_cache=True)
    layer = cache.layers[0]
    assert layer.keys.shape[-2] == layer.values.shape[-2] == 3, (
        f"{version('transformers')}: DynamicCache.layers changed"
    )
    assert "`DynamicCache`" in PAGE


def test_attention_is_looked_up_where_the_plan_replaces_it(load_tiny, monkeypatch):
    seen, real = [], F.scaled_dot_product_attention

    def look(*args, **kwargs):
        seen.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", look)
    load_tiny()(input_ids=torch.zeros(1, 3, dtype=torch.long))
    assert len(seen) == 2, (
        f"{version('transformers')} calls attention elsewhere; radargate plan would predict too much memory"
    )
    assert "`scaled_dot_product_attention`" in PAGE


def test_a_storage_can_be_watched_until_it_is_gone():
    """What the memory count of plan and bench rests on."""
    import weakref

    gone, tensor = [], torch.zeros(4)
    weakref.finalize(tensor.untyped_storage(), gone.append, 1)
    view = tensor[:2]
    del tensor
    assert not gone
    del view
    assert gone, f"{version('torch')}: a storage's Python object no longer lives as long as the storage"
    assert isinstance(torch.zeros(1, device="meta").untyped_storage()._cdata, int) and "`_cdata`" in PAGE


def test_the_small_parts_that_are_read_or_replaced_are_there():
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as usual
    from transformers import PreTrainedModel, modeling_gguf_pytorch_utils

    assert usual["llama"] and "`TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING`" in PAGE
    assert hasattr(modeling_gguf_pytorch_utils, "tqdm"), f"{version('transformers')}: reading a .gguf shows its own bar"
    assert PreTrainedModel._is_stateful is False and "`_is_stateful`" in PAGE


def test_installed_versions_are_those_we_say_we_support():
    text = (ROOT / "pyproject.toml").read_text()
    for line in re.findall(r'^    "((?:torch|transformers|peft|accelerate|safetensors)[^"]*)",', text, re.M):
        wanted = Requirement(line)
        installed = Version(importlib.metadata.version(wanted.name))
        assert wanted.specifier.contains(installed.base_version), (
            f"{wanted.name} {installed} is outside {wanted.specifier}"
        )
        assert wanted.name in PAGE
