// The API's reference, drawn from the server's own OpenAPI description.

import { BASE } from './api.js';
import { byId, el } from './dom.js';
import { example, fieldsOf, resolve, typeName } from './schema.js';

const METHODS = ['get', 'post', 'put', 'patch', 'delete'];

function operationsOf(spec) {
  return Object.entries(spec.paths).flatMap(([path, item]) => METHODS.filter((method) => item[method]).map((method) => ({
    path, method, ...item[method], parameters: [...(item.parameters ?? []), ...(item[method].parameters ?? [])].map((one) => resolve(spec, one)),
    id: `${method}${path.replace(/[^a-z0-9]+/gi, '-')}`.replace(/-$/, ''),
  })));
}

/** Descriptions are Markdown; of that, only code is worth a shape here. */
const prose = (text) => text.split('`').map((part, index) => (index % 2 ? el('code', {}, part) : part));

/** A row a field; `nested` is the list of the fields inside it. */
function fieldRow({ name, type, required, limits, text, nested }) {
  return el('li', { class: 'field' },
    el('p', { class: 'field-head' }, el('code', {}, name), el('span', { class: 'hint' }, [type, ...limits].join(' · ')), required ? el('span', { class: 'required' }, 'required') : null),
    text ? el('p', { class: 'field-text' }, ...prose(text)) : null,
    nested.length ? el('ul', { class: 'fields' }, ...nested.map(fieldRow)) : null);
}

const section = (title, ...content) => el('section', {}, el('h3', {}, title), ...content);

function parameters(spec, operation) {
  if (!operation.parameters.length) return null;
  return section('Parameters', el('ul', { class: 'fields' }, ...operation.parameters.map((one) => fieldRow({
    ...fieldsOf(spec, { properties: { [one.name]: one.schema ?? {} }, required: one.required ? [one.name] : [] })[0],
    type: `${typeName(spec, one.schema ?? {})} in ${one.in}`, text: one.description ?? one.schema?.description,
  }))));
}

function schemaBlock(spec, content) {
  const schema = content?.['application/json']?.schema;
  if (!schema) return content ? [el('p', { class: 'hint' }, Object.keys(content).join(', '))] : [];
  const fields = fieldsOf(spec, schema);
  return [fields.length ? el('ul', { class: 'fields' }, ...fields.map(fieldRow)) : el('p', { class: 'hint' }, typeName(spec, schema))];
}

function responses(spec, operation) {
  return section('Answers', ...Object.entries(operation.responses).map(([status, reference]) => {
    const response = resolve(spec, reference);
    return el('details', {}, el('summary', {}, el('code', {}, status), ` ${response.description ?? ''}`), ...schemaBlock(spec, response.content));
  }));
}

function curl(spec, operation) {
  const required = operation.parameters.filter((one) => one.in === 'query' && one.required);
  const query = required.map((one) => `${one.name}=${encodeURIComponent(example(spec, one.schema ?? {}, one.name))}`).join('&');
  const path = operation.path.replace(/{([^}]+)}/g, (_, name) => name.toUpperCase());
  const lines = [`curl '${new URL(path.replace(/^\//, ''), BASE)}${query ? `?${query}` : ''}'`];
  if ((operation.security ?? spec.security)?.length) lines.push('-H "Authorization: Bearer $XREC_API_KEY"');
  const media = operation.requestBody && resolve(spec, operation.requestBody).content?.['application/json'];
  if (media) {
    const value = media.example ?? Object.values(media.examples ?? {})[0]?.value ?? example(spec, media.schema);
    // A quote inside a quoted word of the shell.
    const body = JSON.stringify(value, null, 1).replace(/\n\s*/g, ' ').replaceAll("'", "'\\''");
    lines.push(`-H 'Content-Type: application/json'`, `-d '${body}'`);
  }
  return lines.join(' \\\n  ');
}

function curlBlock(text) {
  const button = el('button', { type: 'button', onclick: async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = 'Copied';
      byId('status').textContent = 'Copied';
    } catch {
      // Browsers refuse the clipboard to pages that came over plain HTTP from another machine.
      getSelection().selectAllChildren(code);
      button.textContent = 'Selected: press Ctrl+C';
    }
  } }, 'Copy');
  const code = el('code', {}, text);
  return el('div', { class: 'curl' }, el('pre', { tabindex: '0', role: 'region', 'aria-label': 'curl command' }, code), button);
}

function article(spec, operation) {
  const body = operation.requestBody && resolve(spec, operation.requestBody);
  return el('article', { id: operation.id, 'aria-labelledby': `${operation.id}-title` }, ...[
    el('h2', { id: `${operation.id}-title` }, operation.summary ?? operation.path),
    el('p', { class: 'address' }, el('span', { class: `method ${operation.method}` }, operation.method.toUpperCase()), el('code', {}, operation.path)),
    ...(operation.description ?? '').split(/\n\s*\n/).filter(Boolean).map((text) => el('p', { class: 'prose' }, ...prose(text))),
    curlBlock(curl(spec, operation)),
    parameters(spec, operation),
    body ? section('Body', ...schemaBlock(spec, body.content)) : null,
    responses(spec, operation),
  ].filter(Boolean));
}

function contents(operations) {
  const tags = Map.groupBy ? Map.groupBy(operations, (one) => one.tags?.[0] ?? '') : new Map([['', operations]]);
  return [...tags].flatMap(([tag, members]) => [tag ? el('h2', {}, tag) : null,
    el('ul', {}, ...members.map((one) => el('li', {}, el('a', { href: `#${one.id}` }, one.summary ?? one.path))))]).filter(Boolean);
}

async function start() {
  try {
    const response = await fetch(new URL('openapi.json', BASE));
    if (!response.ok) throw new Error(`status ${response.status}`);
    const spec = await response.json();
    const operations = operationsOf(spec);
    byId('title').textContent = `${spec.info.title} ${spec.info.version}`;
    byId('description').textContent = spec.info.description ?? '';
    byId('contents').replaceChildren(...contents(operations));
    byId('operations').append(...operations.map((operation) => article(spec, operation)));
    // The browser looked for the address's target before it was there.
    if (location.hash) byId(decodeURIComponent(location.hash.slice(1)))?.scrollIntoView();
  } catch (error) {
    byId('notice').replaceChildren(el('div', { class: 'notice' }, el('p', {}, el('strong', {}, 'The description of the API could not be read. '), error.message)));
  }
}

start();
