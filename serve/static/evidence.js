// What stands behind a sentence: people and choices as roots, joined by threads as thick as they are similar.

import { el, plural, svg } from './dom.js';

const BEND = 30; // px over which a strand bends into the cable
const MIDDLE = 17; // px from a row's top to the middle of its first line

function root(kind, name, detail, similarity) {
  const node = el('li', { class: `root ${kind}` },
    el('span', { class: 'root-name' }, name),
    detail ? el('span', { class: 'root-detail' }, detail) : null,
    el('span', { class: 'root-similarity' }, el('span', { class: 'visually-hidden' }, 'similarity '), similarity.toFixed(2)));
  node.dataset.similarity = Math.max(0, Math.min(1, similarity));
  return node;
}

function group(title, none, rows) {
  return el('section', { class: 'root-group' }, el('h4', {}, title), rows.length ? el('ul', {}, ...rows) : el('p', { class: 'hint' }, none));
}

function shared(items) {
  if (!items.length) return null;
  const names = items.slice(0, 3).map((item) => item.title || item.item_id).join(', ');
  return items.length > 3 ? `also chose ${names} and ${plural(items.length - 3, 'other')}` : `also chose ${names}`;
}

/** One strand per row, from the row's left edge into a cable that rises to the bead; measured, because rows wrap. */
function drawThreads(canvas, panel) {
  const box = panel.getBoundingClientRect();
  const rows = [...panel.querySelectorAll('.root')].map((row) => ({ row, width: 0.6 + 2.4 * row.dataset.similarity ** 2 }));
  const cable = rows.reduce((sum, { width }) => sum + width, 0);
  let lane = Number.parseFloat(getComputedStyle(panel).getPropertyValue('--trunk')) + cable / 2;
  canvas.replaceChildren(...rows.map(({ row, width }) => {
    const { top, left } = row.getBoundingClientRect();
    const y = (top - box.top + MIDDLE).toFixed(1);
    const x = (left - box.left - 6).toFixed(1);
    // The upper rows take the right lanes, so that no strand crosses another.
    const at = (lane - width / 2).toFixed(1);
    lane -= width;
    const bend = Math.max(0, y - BEND);
    return svg('path', { class: row.classList.contains('people') ? 'people' : 'own', 'stroke-width': width.toFixed(2), pathLength: 1,
      d: `M${x} ${y}C${at} ${y} ${at} ${y} ${at} ${bend}V0` });
  }));
}

function effectText(effect) {
  if (!effect) return null;
  const nats = effect.nats_per_token;
  const strength = typeof nats === 'number'
    ? `Their own signal makes the sentence ${Math.abs(nats).toFixed(2)} nats per token ${nats < 0 ? 'less' : 'more'} likely than the average person’s does.` : '';
  return el('p', { class: 'effect' }, effect.changed ? 'The collaborative signal changes this sentence. ' :
    'The average person’s signal gives the same sentence. ', strength);
}

/** A <details> that loads on its first opening. `loaded(effect)` is told what the signal changes. */
export function evidencePanel({ load, fail, loaded }) {
  const canvas = svg('svg', { class: 'threads', 'aria-hidden': 'true', focusable: 'false' });
  const content = el('div', { class: 'roots-content' });
  const panel = el('div', { class: 'roots' }, canvas, content);
  const node = el('details', { class: 'evidence' }, el('summary', {}, el('span', { class: 'bead', 'aria-hidden': 'true' }), 'What stands behind it'), panel);
  let asked = false;

  async function fetchOnce() {
    if (asked) return;
    asked = true;
    content.replaceChildren(el('p', { class: 'hint' }, 'Looking it up …'));
    try {
      const row = await load();
      const { score, similar_users: people, history, signal_effect: effect } = row.evidence;
      content.replaceChildren(...[
        group('People like them who chose it', 'Nobody similar has chosen it yet.', people.map((other) =>
          root('people', other.user_id, shared(other.shared_items), other.similarity))),
        group('Their own choices nearest to it', 'Nothing of theirs is near.', history.map((item) =>
          root('own', item.title || item.item_id, null, item.similarity))),
        el('p', { class: 'effect' }, 'Together they put the item at a score of ', el('b', {}, score.toFixed(2)), '. Numbers on the right are cosine similarities.'),
        effectText(effect),
      ].filter(Boolean));
      loaded(effect);
      drawThreads(canvas, panel);
    } catch (error) {
      asked = false;
      node.open = false;
      if (error.name !== 'AbortError') fail(error, () => { node.open = true; });
    }
  }

  node.addEventListener('toggle', () => { if (node.open) fetchOnce(); });
  new ResizeObserver(() => { if (node.open) drawThreads(canvas, panel); }).observe(panel);
  return { node };
}
