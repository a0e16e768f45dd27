// Reads the JSON schemas of an OpenAPI description: names of types, lists of fields, an example of each.

const DEPTH = 5; // a schema may contain itself

export function resolve(spec, node) {
  if (!node?.$ref) return node ?? {};
  const parts = node.$ref.replace(/^#\//, '').split('/').map((part) => part.replaceAll('~1', '/').replaceAll('~0', '~'));
  return resolve(spec, parts.reduce((at, part) => at?.[part], spec));
}

/** The alternatives of a schema without null; one that has none is its own only alternative. */
function choices(spec, node) {
  const schema = resolve(spec, node);
  const options = schema.anyOf ?? schema.oneOf ?? (schema.allOf?.length === 1 ? schema.allOf : null);
  return options ? options.flatMap((option) => choices(spec, option)).filter((option) => option.type !== 'null') : [schema];
}

const nullable = (spec, node) => (resolve(spec, node).anyOf ?? resolve(spec, node).oneOf ?? []).some((option) => option.type === 'null');

export function typeName(spec, node) {
  const names = choices(spec, node).map((schema) => {
    if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(' or ');
    if (schema.const !== undefined) return JSON.stringify(schema.const);
    if (schema.type === 'array') return `list of ${typeName(spec, schema.items ?? {})}`;
    return schema.type ?? 'anything';
  });
  return [...new Set(names), ...(nullable(spec, node) ? ['null'] : [])].join(' or ');
}

const LIMITS = { minimum: '≥', exclusiveMinimum: '>', maximum: '≤', exclusiveMaximum: '<', minLength: 'length ≥', maxLength: 'length ≤', minItems: 'items ≥', maxItems: 'items ≤', pattern: 'pattern' };

function limitsOf(spec, node) {
  const schemas = [resolve(spec, node), ...choices(spec, node)];
  const limits = schemas.flatMap((schema) => Object.entries(LIMITS).filter(([key]) => schema[key] !== undefined).map(([key, word]) => `${word} ${schema[key]}`));
  const preset = schemas[0].default;
  return [...new Set(limits), ...(preset === undefined || preset === null ? [] : [`${JSON.stringify(preset)} if left out`])];
}

/** The fields of an object, or of the objects in a list: {name, type, required, limits, text, nested}. */
export function fieldsOf(spec, node, depth = 0) {
  if (depth > DEPTH) return [];
  return choices(spec, node).flatMap((schema) => {
    if (schema.type === 'array') return fieldsOf(spec, schema.items ?? {}, depth);
    return Object.entries(schema.properties ?? {}).map(([name, property]) => ({
      name, type: typeName(spec, property), required: schema.required?.includes(name) ?? false, limits: limitsOf(spec, property),
      text: property.description ?? resolve(spec, property).description, nested: fieldsOf(spec, property, depth + 1),
    }));
  });
}

/** A value that fits: the description's own example where it has one, else required fields only. */
export function example(spec, node, name = 'value', depth = 0) {
  const outer = resolve(spec, node);
  const [schema] = choices(spec, node);
  const given = [outer, schema].map((one) => one?.example ?? one?.examples?.[0]).find((one) => one !== undefined);
  if (given !== undefined || !schema || depth > DEPTH) return given ?? null;
  if (schema.const !== undefined || schema.enum) return schema.const ?? schema.enum[0];
  if (outer.default !== undefined && outer.default !== null) return outer.default;
  if (schema.type === 'array') return [example(spec, schema.items ?? {}, name, depth + 1)];
  if (schema.type === 'integer' || schema.type === 'number') return schema.minimum ?? 1;
  if (schema.type === 'boolean') return false;
  if (schema.type !== 'object' && !schema.properties) return name.toUpperCase();
  const fields = Object.entries(schema.properties ?? {}).filter(([key]) => schema.required?.includes(key));
  return Object.fromEntries(fields.map(([key, property]) => [key, example(spec, property, key, depth + 1)]));
}
