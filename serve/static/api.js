// Talks to the server: one place for addresses, the key, and what counts as an error. Knows nothing of the page.

import { readEvents } from './stream.js';

// From this file's own address, so that the page works behind any route prefix.
export const BASE = new URL('../', import.meta.url);

// Only this tab, only until it is closed: a key must not outlive the visit.
const KEY = 'xrec-api-key';

export function setKey(key) {
  sessionStorage.setItem(KEY, key);
}

export const hasKey = () => sessionStorage.getItem(KEY) !== null;

/** A failure that the page can put into words. `status` is 0 where there was no HTTP answer. */
export class ApiError extends Error {
  constructor({ status = 0, code, message, field = null, requestId = null, retryAfter = null }) {
    super(message);
    Object.assign(this, { status, code, field, requestId, retryAfter });
  }
}

function address(path, query = {}) {
  const url = new URL(path, BASE);
  for (const [name, value] of Object.entries(query)) {
    if (value !== null && value !== undefined && value !== '') url.searchParams.set(name, value);
  }
  return url;
}

function waitSeconds(response) {
  const header = response.headers.get('Retry-After');
  if (!header) return null;
  const seconds = /^\d+$/.test(header) ? Number(header) : (Date.parse(header) - Date.now()) / 1000;
  return Number.isFinite(seconds) ? Math.max(0, Math.ceil(seconds)) : null;
}

async function toError(response) {
  const fallback = { status: response.status, requestId: response.headers.get('X-Request-ID'), retryAfter: waitSeconds(response) };
  try {
    const { error } = await response.json();
    return new ApiError({ ...fallback, code: error.code, message: error.message, field: error.field,
      requestId: error.request_id ?? fallback.requestId });
  } catch {
    // A proxy in between answers with a page of its own.
    return new ApiError({ ...fallback, code: `http_${response.status}`, message: `The server answered with status ${response.status}.` });
  }
}

async function send(url, { body, signal, accept }) {
  const headers = { Accept: accept };
  const key = sessionStorage.getItem(KEY);
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body !== undefined) headers['Content-Type'] = 'application/json';
  let response;
  try {
    response = await fetch(url, { method: body === undefined ? 'GET' : 'POST', headers, signal,
      body: body === undefined ? undefined : JSON.stringify(body) });
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new ApiError({ code: 'unreachable', message: 'The server cannot be reached. It may be down, or the network is.' });
  }
  if (!response.ok) throw await toError(response);
  return response;
}

async function json(path, { query, body, signal } = {}) {
  const response = await send(address(path, query), { body, signal, accept: 'application/json' });
  return response.json();
}

/** Yields {event, data} up to `done`; an `error` event and a stream that just stops are thrown. */
async function* events(path, { query, body, signal }) {
  const response = await send(address(path, query), { body, signal, accept: 'text/event-stream' });
  try {
    for await (const { event, data } of readEvents(response.body)) {
      const value = JSON.parse(data);
      if (event === 'error') {
        const { code, message, field, request_id: requestId } = value.error;
        throw new ApiError({ code, message, field, requestId, status: response.status });
      }
      yield { event, data: value };
      if (event === 'done') return;
    }
  } catch (error) {
    if (error.name === 'AbortError' || error instanceof ApiError) throw error;
  }
  if (signal?.aborted) throw new DOMException('aborted', 'AbortError');
  throw new ApiError({ code: 'stream_cut', requestId: response.headers.get('X-Request-ID'),
    message: 'The connection broke before everything was written.' });
}

export const models = (signal) => json('v1/models', { signal }).then((answer) => answer.data);

export const searchUsers = (dataset, query, limit, signal) =>
  json('v1/users', { query: { dataset, query, limit }, signal }).then((answer) => answer.users);

export const searchItems = (dataset, query, limit, signal) =>
  json('v1/items', { query: { dataset, query, limit }, signal }).then((answer) => answer.items);

export const user = (dataset, id, signal) => json(`v1/users/${encodeURIComponent(id)}`, { query: { dataset }, signal });

/** `person` is {user_id} or, for someone new, {interactions, user_profile}. */
export function recommend(dataset, person, k, mode, signal) {
  const options = { k, explain: true, signal: mode, stream: true };
  if (person.user_id === undefined) return events('v1/recommendations', { body: { dataset, ...person, ...options }, signal });
  const path = `v1/users/${encodeURIComponent(person.user_id)}/recommendations`;
  return events(path, { query: { dataset, ...options }, signal });
}

export const explain = (dataset, person, itemIds, mode, signal) =>
  events('v1/explanations', { signal, body: { dataset, signal: mode, stream: true, pairs: itemIds.map((id) => ({ ...person, item_id: id })) } });

export const evidence = (dataset, person, itemId, signal) =>
  json('v1/explanations', { signal, body: { dataset, signal: 'true', evidence: true, pairs: [{ ...person, item_id: itemId }] } })
    .then((answer) => answer.explanations[0]);
