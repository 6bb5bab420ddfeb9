// Small things that the page builds of. Text goes into the document as text only.

export const byID = (id) => globalThis.document.getElementById(id);

// element makes one, with attributes and children; texts become text nodes, and what is null is left out.
export function element(tag, attributes = {}, ...children) {
  const e = globalThis.document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) e.setAttribute(name, value);
  e.append(...children.flat(Infinity).filter((c) => c !== null));
  return e;
}

// copyButton copies a text, and says so. Where the clipboard is closed to the page, the text is selected instead, for the keyboard.
export function copyButton(what, value, shown) {
  const button = element("button", {type: "button", class: "copy", "aria-label": `Copy ${what}`}, "Copy");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(value);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(shown);
      button.textContent = globalThis.document.execCommand("copy") ? "Copied" : "Press Ctrl+C";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
  return button;
}

// setState gives an element a state: the class that colours it, the mark's shape, and the word.
export function setState(e, state) {
  e.classList.remove("pass", "fail", "skip", "wait");
  e.classList.add(state);
  const shown = e.querySelector(".state");
  shown.querySelector("use").setAttribute("href", `#mark-${state}`);
  shown.querySelector(".word").textContent = state === "wait" ? "checking" : state;
}

// definitions lists names and values, each hash, id and key with a button that copies it.
export function definitions(facts) {
  return element("dl", {}, facts.flatMap(([name, value]) => {
    const shown = element("code", {}, value);
    return [element("dt", {}, name), element("dd", {}, shown, /^[\w+/=]{12,}$/.test(value) ? copyButton(name, value, shown) : null)];
  }));
}

// readable takes an app-compose.json apart for people, as readable in stations.go does: texts of several lines, then the rest.
export function readable(compose) {
  try {
    const members = JSON.parse(compose);
    const texts = Object.entries(members).filter(([, v]) => typeof v === "string" && v.includes("\n"));
    const rest = Object.fromEntries(Object.entries(members).filter(([name]) => !texts.some(([n]) => n === name)));
    return [...texts, ["everything else", JSON.stringify(rest, null, 2)]];
  } catch {
    return [["app-compose.json", compose]];
  }
}
