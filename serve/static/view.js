// The parts of the page around the cards: notices, the person, and what the server runs on.

import { byId, el, plural } from './dom.js';

const TITLES = {
  user_not_found: 'There is no such person',
  item_not_found: 'There is no such item',
  dataset_not_found: 'There is no such dataset',
  unreachable: 'No connection',
  stream_cut: 'Cut off',
};
const BY_STATUS = { 413: 'That is too much at once', 422: 'The server does not understand that', 429: 'Too many requests', 503: 'The server is busy', 504: 'It took too long' };
const SHOWN = 8; // items of a history before the rest folds away

let ticking = 0;

export function clearNotice() {
  clearInterval(ticking);
  byId('notice').replaceChildren();
}

/** Says what went wrong, which request it was, and when to try again; no `retry` where trying again cannot help. */
export function showError(error, retry) {
  clearInterval(ticking);
  const title = TITLES[error.code] ?? BY_STATUS[error.status] ?? 'That did not work';
  const wait = error.retryAfter;
  const button = el('button', { type: 'button', class: 'primary', onclick: () => { clearNotice(); retry(); } }, 'Try again');
  byId('notice').replaceChildren(el('div', { class: 'notice' },
    el('div', {}, el('strong', {}, title), el('p', {}, error.message, wait === null || wait === undefined ? '' : ` Try again in ${plural(wait, 'second')}.`),
      error.requestId ? el('p', { class: 'hint' }, 'Request ', el('code', {}, error.requestId)) : null),
    retry ? button : null));
  if (!wait) return;
  // Only the button counts down: a changing alert would be read aloud every second.
  const until = Date.now() + wait * 1000;
  const tick = () => {
    const left = Math.ceil((until - Date.now()) / 1000);
    button.setAttribute('aria-label', 'Try again');
    button.textContent = left > 0 ? `Try again (${left} s)` : 'Try again';
    if (left <= 0) clearInterval(ticking);
  };
  tick();
  ticking = setInterval(tick, 1000);
}

export function say(text) {
  byId('status').textContent = text;
}

const itemList = (items) => el('ul', { class: 'history' }, ...items.map((item) => el('li', {}, item.title || item.item_id)));

/** The panel beside the cards. `details` is what the server knows, or a new person's chosen items. */
export function showPerson({ name, profile, history, note }) {
  const rest = history.slice(SHOWN);
  byId('person').replaceChildren(...[
    el('h2', { id: 'person-name' }, name),
    note ? el('p', { class: 'hint' }, note) : null,
    profile ? el('p', { class: 'profile' }, profile) : null,
    el('h3', {}, `Chose ${plural(history.length, 'item')}`),
    history.length ? itemList(history.slice(0, SHOWN)) : null,
    rest.length ? el('details', { class: 'more' }, el('summary', {}, `${rest.length.toLocaleString('en')} more`), itemList(rest)) : null,
  ].filter(Boolean));
  byId('person').hidden = false;
}

export function showAbout(model) {
  const loaded = new Date(model.loaded_at);
  const when = Number.isNaN(loaded.valueOf()) ? '' : `, loaded ${loaded.toLocaleString('en', { dateStyle: 'medium', timeStyle: 'short' })}`;
  byId('about').replaceChildren(...[
    el('p', {}, el('b', {}, model.id), ` · ${plural(model.users, 'person', 'people')}, ${plural(model.items, 'item')} · snapshot `, el('code', {}, model.snapshot ?? 'none'), when),
    model.error ? el('p', {}, `A newer snapshot was refused, this one serves on: ${model.error}`) : null,
  ].filter(Boolean));
}

/** A list of buttons, each with its text; `remove` makes them chips that take themselves away. */
export function showChips(list, chips, { press, remove = false }) {
  list.replaceChildren(...chips.map((chip, index) => el('li', {}, el('button', {
    type: 'button', class: 'chip', onclick: () => press(chip, index),
  }, remove ? el('span', { class: 'visually-hidden' }, 'Remove ') : null, chip.label, remove ? el('span', { class: 'cross', 'aria-hidden': 'true' }) : null))));
}
