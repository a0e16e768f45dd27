// One recommended item: its score, the sentence as it is written, and what another signal would have made of it.

import { diffWords } from './diff.js';
import { el } from './dom.js';
import { evidencePanel } from './evidence.js';

export const SIGNALS = { true: 'their own signal', average: 'the average person’s signal', off: 'no signal' };

/** Words of `text` that `other` lacks are marked; without `other`, plain text. */
export function marked(text, other) {
  if (!other) return [text];
  const runs = diffWords(text, other).map((run) => (run.differs ? el('mark', {}, run.text) : run.text));
  return runs.flatMap((run, index) => (index ? [' ', run] : [run]));
}

/**
 * A card for one row of recommendations. `loadEvidence()` resolves to the row of explanations that carries evidence;
 * `fail(error, retry)` shows what went wrong with it.
 */
export function card(row, best, { loadEvidence, fail }) {
  const texts = {};
  let mode = 'true';
  let other = null; // the signal that was shown before this one, for the comparison

  const sentence = el('p', { class: 'sentence' });
  const instead = el('p', { class: 'instead', hidden: true });
  const note = el('p', { class: 'card-note', hidden: true });
  const meter = el('span', { class: 'meter', 'aria-hidden': 'true' });
  meter.style.setProperty('--share', best > 0 ? Math.max(0, row.score / best) : 0);
  const evidence = evidencePanel({ load: loadEvidence, fail, loaded: (effect) => {
    texts.average ??= effect?.explanation;
    draw();
  } });
  const node = el('li', { class: 'card', 'data-item': row.item_id },
    el('div', { class: 'card-head' },
      el('h3', {}, row.title || row.item_id),
      el('p', { class: 'score' }, meter, el('span', { class: 'score-number' }, row.score.toFixed(2)), el('span', { class: 'visually-hidden' }, ' score'))),
    el('div', { class: 'voice' }, sentence, instead, note),
    evidence.node);

  function state(name) {
    node.dataset.state = name;
    node.dataset.signal = mode;
    node.setAttribute('aria-busy', String(name === 'waiting' || name === 'writing'));
    note.hidden = name !== 'cut';
    note.textContent = name === 'cut' ? 'Not finished.' : '';
  }

  function draw() {
    const text = texts[mode];
    if (text === undefined) return;
    state('ready');
    if (other === null && mode === 'true' && texts.average) other = 'average';
    const compared = other === null ? undefined : texts[other];
    sentence.replaceChildren(...(text ? marked(text, compared) : ['The model wrote nothing.']));
    node.toggleAttribute('data-empty', !text);
    instead.hidden = !compared;
    if (!compared) return;
    const same = compared === text;
    instead.replaceChildren(el('span', { class: 'instead-label' }, same ? `The same with ${SIGNALS[other]}.` : `With ${SIGNALS[other]}`),
      ...(same ? [] : [' ', el('span', { class: 'instead-text' }, ...marked(compared, text))]));
  }

  function wait() {
    state('waiting');
    instead.hidden = true;
    sentence.replaceChildren();
  }

  wait();
  return {
    node,
    itemId: row.item_id,
    lacks: () => texts[mode] === undefined,
    /** Shows the text under another signal, or waits for it. */
    show(next) {
      if (next !== mode) other = texts[mode] === undefined ? null : mode;
      mode = next;
      if (texts[mode] === undefined) wait();
      else draw();
    },
    piece(text) {
      if (node.dataset.state !== 'writing') { sentence.replaceChildren(); state('writing'); }
      sentence.append(sentence.textContent ? text : text.trimStart());
    },
    finish(text) {
      texts[mode] = text;
      draw();
    },
    /** The stream ended without this one's end: what there is stays, and says so. */
    cut() {
      if (texts[mode] === undefined) state('cut');
    },
    restart() {
      if (texts[mode] === undefined) wait();
    },
  };
}
