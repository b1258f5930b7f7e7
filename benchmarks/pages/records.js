"use strict";
const { texts, rows, shown } = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const value = (row, column) => (texts[column] ? texts[column][row[column]] : row[column]);
let most = shown, column = -1, up = true;

function chosen() {
  const experiment = at("experiment").value;
  const words = at("words").value.toLowerCase().split(/\s+/).filter(Boolean);
  const found = rows.filter((row) => {
    if (experiment && value(row, 0) !== experiment) return false;
    if (!words.length) return true;
    const text = row.map((_, i) => value(row, i) ?? "").join(" ").toLowerCase();
    return words.every((word) => text.includes(word));
  });
  if (column < 0) return found;
  return found.sort((a, b) => {
    const [x, y] = [value(a, column), value(b, column)];
    if (x === null || y === null) return (x === null) - (y === null); // what is missing comes last
    return (x < y ? -1 : x > y ? 1 : 0) * (up ? 1 : -1);
  });
}

function draw() {
  const found = chosen();
  at("rows").replaceChildren(...found.slice(0, most).map((row) => {
    const line = document.createElement("tr");
    row.forEach((_, i) => {
      const cell = document.createElement(i ? "td" : "th");
      if (!texts[i]) cell.className = "number";
      const text = value(row, i);
      cell.textContent = text ?? "";
      line.append(cell);
    });
    return line;
  }));
  at("count").textContent = `${found.length} of ${rows.length} records`;
  at("more").hidden = found.length <= most;
}

for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const own = Number(button.dataset.column);
    up = own === column ? !up : true;
    column = own;
    for (const head of document.querySelectorAll("th[aria-sort]")) head.removeAttribute("aria-sort");
    button.closest("th").setAttribute("aria-sort", up ? "ascending" : "descending");
    draw();
  });
}
for (const id of ["experiment", "words"]) at(id).addEventListener("input", () => { most = shown; draw(); });
at("more").addEventListener("click", () => { most += shown; draw(); });
document.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
at("experiment").value = decodeURIComponent(location.hash.slice(1));
if (at("experiment").selectedIndex < 0) at("experiment").value = "";
draw();
