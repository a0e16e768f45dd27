// A search box with suggestions: the ARIA pattern "editable combobox with list autocomplete".

import { el } from './dom.js';

const PAUSE = 150; // ms of no typing before a search is sent

/**
 * Makes `input` (role=combobox, aria-controls = the listbox's id) search as one types.
 *
 * search(text, abortSignal) resolves to options; render(option) gives an option's nodes; choose(option) takes one;
 * typed(text), if given, takes text that was entered without choosing; problem(error) is told of failed searches.
 */
export function combobox(input, { search, render, choose, typed, problem, nothing }) {
  const list = document.getElementById(input.getAttribute('aria-controls'));
  const status = document.getElementById(`${input.id}-status`);
  let options = [];
  let active = -1;
  let timer = 0;
  let running = new AbortController();

  function close() {
    clearTimeout(timer);
    running.abort();
    list.hidden = true;
    list.replaceChildren();
    options = [];
    input.setAttribute('aria-expanded', 'false');
    input.removeAttribute('aria-activedescendant');
    status.textContent = '';
    active = -1;
  }

  function activate(index) {
    list.children[active]?.setAttribute('aria-selected', 'false');
    active = index;
    const option = list.children[active];
    if (!option) return input.removeAttribute('aria-activedescendant');
    option.setAttribute('aria-selected', 'true');
    option.scrollIntoView({ block: 'nearest' });
    input.setAttribute('aria-activedescendant', option.id);
  }

  function take(option) {
    close();
    choose(option);
  }

  function show(found) {
    options = found;
    active = -1;
    input.removeAttribute('aria-activedescendant');
    list.replaceChildren(...found.map((option, index) => el('li', {
      role: 'option', id: `${list.id}-${index}`, 'aria-selected': 'false', onclick: () => take(option),
    }, ...render(option))));
    list.hidden = found.length === 0;
    input.setAttribute('aria-expanded', String(found.length > 0));
    status.textContent = found.length ? `${found.length} suggestions` : nothing(input.value.trim());
    status.classList.toggle('visually-hidden', found.length > 0);
  }

  async function open() {
    clearTimeout(timer);
    running.abort();
    running = new AbortController();
    const { signal } = running;
    try {
      // What is already chosen is not what the next search is for.
      const text = input.value.trim();
      const found = await search(text === input.dataset.chosen ? '' : text, signal);
      if (!signal.aborted) show(found);
      return !signal.aborted;
    } catch (error) {
      if (error.name !== 'AbortError') { close(); problem(error); }
      return false;
    }
  }

  async function step(by) {
    if (list.hidden && !(await open())) return;
    if (!options.length) return;
    const from = active < 0 && by < 0 ? options.length : active;
    activate((from + by + options.length) % options.length);
  }

  input.addEventListener('input', () => {
    clearTimeout(timer);
    activate(-1); // Enter must not take what an older text suggested
    timer = setTimeout(open, PAUSE);
  });
  input.addEventListener('focus', () => input.select());
  input.addEventListener('click', () => { if (list.hidden) open(); });
  input.addEventListener('blur', close);
  // Otherwise the press takes the focus, the list closes, and the click hits what is below.
  list.addEventListener('mousedown', (event) => event.preventDefault());
  input.addEventListener('keydown', (event) => {
    if (event.isComposing) return;
    if (event.key === 'ArrowDown' || event.key === 'ArrowUp') {
      event.preventDefault();
      step(event.key === 'ArrowDown' ? 1 : -1);
    } else if (event.key === 'Enter') {
      event.preventDefault();
      const text = input.value.trim();
      if (active >= 0) take(options[active]);
      else if (text && typed) { close(); typed(text); }
    } else if (event.key === 'Escape') {
      if (list.hidden) input.value = '';
      close();
    }
  });
  return { close };
}
