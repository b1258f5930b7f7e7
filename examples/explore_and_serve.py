# %% [markdown]
# # Explore and serve
#
# What do the gates do with a text, and how do others ask the model? With adapters of yours:
# `python examples/explore_and_serve.py BASE ADAPTER ADAPTER …`.

# %%
import atexit
import json
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import radargate

base, adapters = "smollm2-135m", radargate.shipped_experts()
if sys.argv[2:]:
    base, adapters = sys.argv[1], {Path(folder).name: folder for folder in sys.argv[2:]}
model = radargate.compose(base, adapters, gate="radar", top_k=2)
model.save_pretrained("explored_bundle")

# %% [markdown]
# ## A trace
#
# For every token and layer: the weight of each adapter and the angle it is rotated by. These gates are fresh, so the rotation is still 0.

# %%
question = "How many metres are 7 kilometres?"
trace = radargate.trace(model, question, max_new_tokens=6)
site = next(site for site in trace.sites() if len(site.experts) > 1)
print(site.site, site.experts)
for token, weights in list(zip(trace.tokens, site.dense_weights().tolist(), strict=True))[-6:]:
    print(f"{token!r:12}", "  ".join(f"{weight:.2f}" for weight in weights))

# %% [markdown]
# What the answer loses without each adapter, in nats a token. Above zero, the adapter helps.

# %%
print({name: round(loss, 3) for name, loss in trace.effect().items()})

# %% [markdown]
# `radargate explore BUNDLE --prompt … --out page.html` makes a page of it to look around in; the notebook
# [explore.ipynb](../../examples/explore.ipynb) does it step by step.
#
# ## Serve it
#
# `radargate serve` speaks OpenAI's protocol. Port 0 takes a free one.

# %%
command = [sys.executable, "-m", "radargate.cli", "serve", "explored_bundle", "--port", "0"]
server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
atexit.register(server.kill)
url = next(found[1] for line in server.stderr if (found := re.search(r" at (http://\S+)/v1", line)))


def is_up():
    try:
        return urllib.request.urlopen(f"{url}/health").status == 200
    except OSError:
        return False


while not is_up():
    time.sleep(0.1)


def ask(prompt, **fields):
    messages = [{"role": "user", "content": prompt}]
    body = {"model": "explored_bundle", "messages": messages, "max_tokens": 12, "temperature": 0, **fields}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)
    return json.load(urllib.request.urlopen(request))["choices"][0]["message"]["content"]


print("all adapters:   ", repr(ask(question)))
print(f"without {list(adapters)[-1]}:", repr(ask(question, experts={list(adapters)[-1]: 0})))

# %%
server.terminate()
print("exit code", server.wait())

# %% [markdown]
# Any OpenAI client works with `base_url="http://127.0.0.1:8000/v1"`; at `/` the server shows a page that asks and shows the routing. More: [Serving](../serving.md).
