/* The live page: ask the server, watch the answer come, then show what the gates did with its tokens. */
const experts = new Map();  // model → names of its experts
const form = at("question"), trouble = at("trouble");
let asking = null;  // what stops the request that runs

function state(word) { document.body.dataset.state = word; }

/* A request to this server; its own words where it refuses. */
async function call(path, body, signal) {
  const headers = { "Content-Type": "application/json", ...(at("key").value ? { Authorization: `Bearer ${at("key").value}` } : {}) };
  const response = await fetch(path, body ? { method: "POST", headers, body: JSON.stringify(body), signal } : { headers, signal });
  if (response.ok) return response;
  if (response.status === 401) at("keyed").hidden = false;
  const found = await response.json().catch(() => null);
  throw new Error(found?.error?.message ?? `the server answered with status ${response.status}.`);
}

/* What a stream of server-sent events says, object by object. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    const lines = (rest + part.value).split("\n\n");
    rest = lines.pop();
    for (const line of lines) if (line !== "data: [DONE]") yield JSON.parse(line.slice("data: ".length));
  }
}

function complain(error) {
  trouble.textContent = error.message;
  trouble.hidden = false;
  state("failed");
}

function drawFactors() {
  const names = experts.get(at("model").value) ?? [];
  at("factors").replaceChildren(at("factors").querySelector("legend"), ...names.map((name) =>
    make("label", {}, `${name} `, make("input", { type: "number", min: 0, max: 10, step: 0.1, value: 1, required: "", "data-expert": name }))));
}

function factors() {
  const fields = [...document.querySelectorAll("[data-expert]")].filter((field) => Number(field.value) !== 1);
  return Object.fromEntries(fields.map((field) => [field.dataset.expert, Number(field.value)]));
}

async function readModels() {
  try {
    const { data } = await (await call("/v1/models")).json();
    for (const one of data) experts.set(one.id, one.experts);
    options(at("model"), [...experts.keys()]);
    drawFactors();
    trouble.hidden = true;
    state("ready");
  } catch (error) { complain(error); }
}

/* Stream the answer; gives the token ids of prompt and answer. */
async function stream(asked, signal) {
  const begun = performance.now(), seconds = () => ((performance.now() - begun) / 1000).toFixed(1), said = { prompt: [], answer: [] };
  const messages = [{ role: "user", content: at("prompt").value }];
  const body = { ...asked, messages, stream: true, return_token_ids: true, max_tokens: Number(at("most").value), temperature: Number(at("heat").value) };
  let first = null;
  for await (const event of events(await call("/v1/chat/completions", body, signal))) {
    if (event.error) throw new Error(event.error.message);
    if (event.prompt_token_ids) said.prompt = event.prompt_token_ids;
    for (const { delta, token_ids: ids } of event.choices) {
      at("answer").append(delta.content ?? "");
      said.answer.push(...(ids ?? []));
      if (ids?.length && first === null) first = seconds();
      at("progress").value = first === null ? "" : `${said.answer.length} ${said.answer.length === 1 ? "token" : "tokens"}, the first after ${first} s, ${seconds()} s in all`;
    }
  }
  return said;
}

async function ask() {
  asking?.abort();
  const mine = asking = new AbortController(), asked = { model: at("model").value, experts: factors() };
  trouble.hidden = true;
  at("answer").replaceChildren();
  at("progress").value = "";
  at("halt").disabled = false;
  state("streaming");
  try {
    const said = await stream(asked, mine.signal), timing = at("progress").value;
    state("tracing");
    at("progress").value = `${timing}; reading the gates…`;
    const body = { ...asked, prompt_token_ids: said.prompt, token_ids: said.answer };
    const trace = await (await call("/v1/traces", body, mine.signal)).json();
    at("progress").value = timing;
    document.querySelector("main").hidden = at("choice").hidden = false;
    show([trace]);
    state("done");
  } catch (error) {
    if (mine !== asking) return;  // another question has taken its place
    if (error.name === "AbortError") { at("progress").value = "stopped"; state("ready"); } else complain(error);
  } finally {
    if (mine === asking) { asking = null; at("halt").disabled = true; }
  }
}

document.querySelector("main").hidden = at("choice").hidden = true;
at("model").addEventListener("change", drawFactors);
at("key").addEventListener("change", readModels);
at("halt").addEventListener("click", () => asking?.abort());
form.addEventListener("submit", (event) => { event.preventDefault(); ask(); });
at("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); form.requestSubmit(); }
});
readModels();
