// The page's state and what happens when it changes. The address holds dataset, person and signal, so that a view can
// be shared; a new person's own words stay out of it.

import * as api from './api.js';
import { card } from './cards.js';
import { combobox } from './combobox.js';
import { byId, el, plural } from './dom.js';
import { clearNotice, say, showAbout, showChips, showError, showPerson } from './view.js';

const COUNT = 8; // recommendations shown
const SUGGESTIONS = 8;
const HINTS = {
  true: 'The model reads this person’s own vectors.',
  average: 'The model reads the average person’s vectors instead. Marked words are what that changes.',
  off: 'The model reads the texts alone, no vectors. Marked words are what that changes.',
};

const state = { models: [], dataset: null, mode: 'known', user: null, items: [], profile: '', signal: 'true', cards: [] };
let shown = {}; // the person whose cards are on the page, as the server takes them
let visit = new AbortController(); // everything that belongs to that person
let stream = new AbortController(); // the explanations being written

function readAddress() {
  const query = new URLSearchParams(location.search);
  const asked = query.get('dataset');
  state.dataset = asked ?? state.models[0]?.id ?? null;
  state.user = query.get('user');
  state.items = query.getAll('item').map((id) => ({ item_id: id, title: id }));
  state.mode = state.items.length && !state.user ? 'new' : 'known';
  state.signal = query.get('signal') in HINTS ? query.get('signal') : 'true';
}

function writeAddress(how = 'pushState') {
  const query = new URLSearchParams();
  if (state.dataset) query.set('dataset', state.dataset);
  if (state.mode === 'known' && state.user) query.set('user', state.user);
  if (state.mode === 'new') for (const item of state.items) query.append('item', item.item_id);
  if (state.signal !== 'true') query.set('signal', state.signal);
  history[how](null, '', `?${query}`);
}

const person = () => (state.mode === 'known' ? { user_id: state.user }
  : { interactions: state.items.map((item) => item.item_id), ...(state.profile ? { user_profile: state.profile } : {}) });

function fail(error, retry) {
  if (error.name === 'AbortError') return;
  if (error.code === 'dataset_not_found' && state.models.length) {
    // What is chosen next should be looked for where there is something.
    state.dataset = byId('dataset').value = state.models[0].id;
  }
  if (error.status !== 401) return showError(error, error.status === 404 ? null : retry);
  clearNotice();
  byId('key-form').hidden = false;
  byId('key-hint').textContent = api.hasKey() ? `${error.message} Please try another.` : 'Kept in this tab only, until you close it.';
  byId('key').focus();
}

function drawControls() {
  byId('mode').querySelector(`[value=${state.mode}]`).checked = true;
  byId('signal').querySelector(`[value=${state.signal}]`).checked = true;
  byId('signal-hint').textContent = HINTS[state.signal];
  byId('known-panel').hidden = state.mode !== 'known';
  byId('new-panel').hidden = state.mode !== 'new';
  byId('user').value = byId('user').dataset.chosen = state.user ?? '';
  byId('dataset').value = state.dataset;
  drawChosen();
  const model = state.models.find((one) => one.id === state.dataset);
  if (model) showAbout(model);
}

function drawChosen() {
  byId('go-new').disabled = state.items.length === 0;
  showChips(byId('chosen'), state.items.map((item) => ({ label: item.title || item.item_id })), { remove: true, press: (_, index) => {
    state.items.splice(index, 1);
    drawChosen();
    byId('item').focus();
  } });
}

/** Shows the cards' explanations as they arrive; a stream of recommendations brings the cards first. */
async function follow(events, cards) {
  let left = cards.length;
  for await (const { event, data } of events) {
    if (event === 'recommendations') {
      cards = data.recommendations.map(makeCard);
      left = cards.length;
      state.cards = cards;
      byId('cards').replaceChildren(...cards.map((one) => one.node));
      if (!left) byId('cards').append(el('li', { class: 'hint' }, 'There is nothing left to recommend: they chose everything.'));
      say(`${plural(left, 'recommendation')}. Writing explanations.`);
    } else if (event === 'delta') {
      cards[data.index].piece(data.text);
    } else if (event === 'explanation') {
      cards[data.index].finish(data.explanation);
    }
  }
  say(`${plural(cards.length, 'explanation')} ready.`);
}

function makeCard(row, _, rows) {
  const best = Math.max(...rows.map((one) => one.score));
  const made = card(row, best, { fail, loadEvidence: () => api.evidence(state.dataset, shown, row.item_id, visit.signal) });
  made.show(state.signal);
  return made;
}

async function write(open, cards) {
  stream.abort();
  stream = new AbortController();
  const { signal } = stream;
  try {
    await follow(open(signal), cards);
  } catch (error) {
    if (signal.aborted) return;
    for (const one of state.cards) one.cut();
    fail(error, state.cards.length ? explainMissing : load);
    if (state.cards.length) return;
    byId('stage').hidden = true;
    if (error.status === 404) welcome(visit.signal);
  }
}

function explainMissing() {
  const cards = state.cards.filter((one) => one.lacks());
  for (const one of cards) one.restart();
  if (cards.length) return write((signal) => api.explain(state.dataset, shown, cards.map((one) => one.itemId), state.signal, signal), cards);
  stream.abort();
}

async function showKnown(signal) {
  try {
    const details = await api.user(state.dataset, state.user, signal);
    showPerson({ ...details, name: details.user_id, note: details.zero_shot ? 'New since training: placed by what they chose.' : null });
  } catch (error) {
    fail(error, load);
  }
}

/** A shared address names items by id alone. */
async function nameItems(signal) {
  try {
    await Promise.all(state.items.filter((item) => item.title === item.item_id).map(async (item) => {
      const found = await api.searchItems(state.dataset, item.item_id, 50, signal);
      item.title = found.find((one) => one.item_id === item.item_id)?.title ?? item.item_id;
    }));
    drawChosen();
    showPerson({ name: 'Someone new', profile: state.profile, history: state.items, note: 'Placed among the others by what they chose.' });
  } catch (error) {
    fail(error, load);
  }
}

async function load() {
  visit.abort();
  stream.abort();
  visit = new AbortController();
  shown = person();
  clearNotice();
  drawControls();
  state.cards = [];
  byId('cards').replaceChildren();
  byId('person').hidden = true;
  const chosen = state.mode === 'known' ? Boolean(state.user) : state.items.length > 0;
  byId('stage').hidden = !chosen;
  document.body.toggleAttribute('data-chosen', chosen);
  byId('welcome').hidden = true;
  document.title = state.mode === 'known' && state.user ? `${state.user} · XRec` : 'XRec';
  if (!chosen) return state.mode === 'known' ? welcome(visit.signal) : undefined;
  const { signal } = visit;
  await Promise.all([
    state.mode === 'known' ? showKnown(signal) : nameItems(signal),
    write((during) => api.recommend(state.dataset, shown, COUNT, state.signal, during), []),
  ]);
}

async function welcome(signal) {
  try {
    const users = await api.searchUsers(state.dataset, '', 6, signal);
    showChips(byId('starters'), users.map((one) => ({ label: one.user_id })), { press: (chip) => chooseUser(chip.label) });
    byId('welcome').hidden = users.length === 0;
  } catch (error) {
    fail(error, load);
  }
}

function chooseUser(id) {
  state.mode = 'known';
  state.user = id;
  writeAddress();
  load();
}

async function anyone() {
  try {
    const users = await api.searchUsers(state.dataset, '', 100);
    const others = users.filter((one) => one.user_id !== state.user);
    if (others.length) chooseUser(others[Math.floor(Math.random() * others.length)].user_id);
  } catch (error) {
    fail(error, anyone);
  }
}

async function start() {
  clearNotice();
  try {
    state.models = await api.models();
  } catch (error) {
    return fail(error, start);
  }
  byId('dataset-field').hidden = state.models.length < 2;
  byId('dataset').replaceChildren(...state.models.map((model) => el('option', { value: model.id }, model.id)));
  readAddress();
  load();
}

combobox(byId('user'), {
  search: (text, signal) => api.searchUsers(state.dataset, text, SUGGESTIONS, signal),
  render: (one) => [el('span', {}, one.user_id), el('span', { class: 'hint' }, plural(one.interactions, 'item'))],
  choose: (one) => chooseUser(one.user_id),
  typed: chooseUser,
  problem: (error) => fail(error, load),
  nothing: (text) => `Nobody’s id starts with “${text}”.`,
});
combobox(byId('item'), {
  search: (text, signal) => api.searchItems(state.dataset, text, SUGGESTIONS, signal),
  render: (one) => [el('span', {}, one.title || one.item_id), el('span', { class: 'hint' }, `chosen by ${one.interactions.toLocaleString('en')}`)],
  choose: (one) => {
    byId('item').value = '';
    if (!state.items.some((item) => item.item_id === one.item_id)) state.items.push(one);
    drawChosen();
  },
  problem: (error) => fail(error, load),
  nothing: (text) => `No item is called “${text}”.`,
});

byId('anyone').addEventListener('click', anyone);
byId('mode').addEventListener('change', (event) => { state.mode = event.target.value; load(); });
byId('dataset').addEventListener('change', (event) => {
  Object.assign(state, { dataset: event.target.value, user: null, items: [] });
  writeAddress();
  load();
});
byId('signal').addEventListener('change', (event) => {
  state.signal = event.target.value;
  byId('signal-hint').textContent = HINTS[state.signal];
  writeAddress('replaceState');
  if (!state.cards.length) return load();
  for (const one of state.cards) one.show(state.signal);
  clearNotice();
  explainMissing();
});
byId('new-panel').addEventListener('submit', (event) => {
  event.preventDefault();
  state.profile = byId('profile').value.trim();
  writeAddress();
  load();
});
byId('key-form').addEventListener('submit', (event) => {
  event.preventDefault();
  api.setKey(byId('key').value.trim());
  byId('key').value = '';
  byId('key-form').hidden = true;
  start();
});
addEventListener('popstate', () => { readAddress(); load(); });
start();
