import { serialize } from 'pg-protocol';
import type { Request, SeenRequest } from '../../../core/contract/index.js';
import { EMPTY_CATALOGUE } from './catalogue.js';
import { gather } from './gather.js';
import { type Findings, plan } from './plan.js';
import type { Catalogue, Filler, Knowledge } from './types.js';

/** Enough for the engine to compile what runs; more costs the start for nothing. */
const ROUNDS = 40;
const [TABLE, SEQUENCE] = [16_384, 16_385];

const int16 = (n: number): Buffer => Buffer.from([n >> 8, n & 255]);
const int32 = (n: number): Buffer => Buffer.from([n >>> 24, (n >> 16) & 255, (n >> 8) & 255, n & 255]);

function frame(type: string, ...body: (Buffer | string)[]): Buffer {
  const bytes = Buffer.concat(body.map((part) => Buffer.from(part as string)));
  return Buffer.concat([Buffer.from(type), int32(bytes.length + 4), bytes]);
}

const COLUMNS: readonly [name: string, type: number, typeName: string, filler: Filler, value: string][] = [
  ['id', 20, 'bigint', { kind: 'sequence', sequence: SEQUENCE }, '7'],
  ['at', 1184, 'timestamp with time zone', { kind: 'time' }, '2026-01-01 00:00:01.5+00'],
  ['token', 2950, 'uuid', { kind: 'volatile' }, '0f9c1a5e-5e4c-4e55-9d0f-000000000001'],
  ['name', 25, 'text', { kind: 'fixed' }, 'a'],
];

const DESCRIPTION = frame(
  'T',
  int16(COLUMNS.length),
  ...COLUMNS.flatMap(([name, type], i) => [
    `${name}\0`,
    int32(TABLE),
    int16(i + 1),
    int32(type),
    int16(-1 & 0xffff),
    int32(-1),
    int16(0),
  ]),
);
const ROW = frame('D', int16(COLUMNS.length), ...COLUMNS.flatMap(([, , , , value]) => [int32(value.length), value]));

function seen(sent: Buffer[], ...answer: Buffer[]): SeenRequest {
  return { request: {} as Request, input: [Buffer.concat(sent)], answer: [Buffer.concat(answer)], done: true };
}

const INSERT = `INSERT INTO warm (name) VALUES ($1) RETURNING *`;
const INSERTED = [DESCRIPTION, ROW, frame('C', 'INSERT 0 1\0')];
/** Requests of a client and what it got for them, of each kind one. */
export const WARM_UNIT: readonly SeenRequest[] = [
  seen(
    [
      serialize.parse({ name: '', text: INSERT }),
      serialize.bind({ values: ['a'] }),
      serialize.describe({ type: 'P' }),
      serialize.execute({}),
      serialize.sync(),
    ],
    frame('1'),
    frame('2'),
    ...INSERTED,
  ),
  seen([serialize.query(INSERT.replace('$1', "'a'"))], ...INSERTED),
  seen(
    [serialize.query('UPDATE warm SET at = now() WHERE id = 7 RETURNING *')],
    DESCRIPTION,
    ROW,
    frame('C', 'UPDATE 1\0'),
  ),
];

const CATALOGUE: Catalogue = {
  ...EMPTY_CATALOGUE,
  named: new Map([['"warm"', TABLE]]),
  relations: new Map([
    [
      TABLE,
      {
        oid: TABLE,
        schema: 'public',
        name: 'warm',
        kind: 'r',
        triggers: false,
        columns: COLUMNS.map(([name, type, typeName, filler], i) => {
          return { name, attribute: i + 1, typeName, type, identityAlways: i === 0, generated: false, filler };
        }),
      },
    ],
  ]),
  sequences: new Map([
    [
      SEQUENCE,
      { oid: SEQUENCE, schema: 'public', name: 'warm_id', visible: true, increment: 1n, start: 1n, last: 99n },
    ],
  ]),
  types: new Map(COLUMNS.map(([, type, typeName]) => [`${type}:-1`, typeName])),
};

/** What a server would have told of their names. */
export const WARM_FOUND: Findings = {
  view: '',
  catalogue: CATALOGUE,
  described: new Map(),
  asked: new Set(['relation "warm"', `relation ${TABLE}`, ...COLUMNS.map(([, type]) => `type ${type}:-1`)]),
  stuck: new Map(),
};

let warm = false;

/**
 * Runs through the planning of a made-up unit until the engine has compiled it, once in a process: the first failover, of all of them, should
 * not wait for that.
 */
export function warmUp(): void {
  if (warm) return;
  warm = true;
  for (let round = 0; round < ROUNDS; round++) {
    const gathered = gather(WARM_UNIT, new Map());
    const knowledge: Knowledge = { time: null, currval: new Map(), lastval: null, held: new Map() };
    if (gathered !== null) plan(gathered, knowledge, WARM_FOUND.view, WARM_FOUND).next();
  }
}
