"""The PEFT plug-in: config, layer and model of a composition, composing, saving and loading it. Imports gates and what lies below."""
