// Making elements. Text goes in as text alone: nothing here or elsewhere makes markup of a string.

/** The element of the page with this id. */
export function at(id) {
  return document.getElementById(id);
}

/** An element with attributes and children; strings become text. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") element.className = value;
    else if (value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== undefined && child !== null));
  return element;
}

/** Sets text where it differs, so that nothing is announced or drawn twice. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Makes `parent` hold these elements in this order, and moves only what is out of place. */
export function arrange(parent, elements) {
  let next = parent.firstChild;
  for (const element of elements) {
    if (element === next) next = next.nextSibling;
    else parent.insertBefore(element, next);
  }
  while (next) {
    const gone = next;
    next = next.nextSibling;
    gone.remove();
  }
}

/** Fills a select with [value, text] pairs and keeps what was chosen, even where it is not among them. */
export function offer(select, options, chosen) {
  const all = chosen && !options.some(([value]) => value === chosen) ? [...options, [chosen, chosen]] : options;
  const same = select.options.length === all.length
    && all.every(([value, text], place) => select.options[place].value === value && select.options[place].text === text);
  if (!same) {
    select.replaceChildren(...all.map(([value, text]) => make("option", { value }, text)));
  }
  if (select.value !== chosen) select.value = chosen;
}
