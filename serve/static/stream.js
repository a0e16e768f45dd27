// Server-sent events out of a fetch. EventSource cannot send a key or a body, and reconnects by itself, which would
// generate everything again.

/** Yields {event, data} for each event of a ReadableStream of bytes; a last event without its blank line is dropped. */
export async function* readEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = '';
  let event = 'message';
  let data = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      buffer += value;
      // A carriage return at the very end may be the first half of a line end.
      const lines = buffer.split(/\r\n|\n|\r(?!$)/);
      buffer = lines.pop();
      for (const line of lines) {
        if (line === '') {
          if (data.length) yield { event, data: data.join('\n') };
          event = 'message';
          data = [];
        } else {
          const [, name, content] = /^([^:]*):? ?(.*)$/s.exec(line);
          if (name === 'event') event = content;
          if (name === 'data') data.push(content);
        }
      }
    }
  } finally {
    // Leaving early (an error, a new person) must also stop the generation on the server.
    reader.cancel().catch(() => {});
  }
}
