import { serialize } from 'pg-protocol';
import { MadeUpDatabase, MadeUpServer } from './engine.js';

/** Conversations of a client with a made-up server, and what comes of them without a gateway. */

/** A simple query. */
export const Q = (text: string): Buffer => serialize.query(text);
/** A statement in the extended protocol, without its Sync. */
export const x = (text: string, name = ''): Buffer =>
  Buffer.concat([
    serialize.parse({ name, text }),
    serialize.bind({ statement: name }),
    serialize.describe({ type: 'P' }),
    serialize.execute(),
  ]);
/** A Sync. */
export const S = serialize.sync() as Buffer;
const d = (text: string) => serialize.copyData(Buffer.from(text));
const c = serialize.copyDone() as Buffer;

/** Begun and ended in one text: the gateway does not judge what it did, and in flight its outcome is unknown (08007). */
export const ROLLED_BACK = 'a transaction rolled back in one Query';

/** Sessions, as the steps that a client takes; between two of them it waits. */
export const SCRIPTS: Readonly<Record<string, readonly Buffer[]>> = {
  'simple queries': [
    Q('select 3'),
    Q(''),
    Q('insert a'),
    Q('insert b returning'),
    Q('select fail'),
    Q('set x'),
    Q('select 1'),
  ],
  'a transaction': [Q('begin'), Q('insert a'), Q('select 2'), Q('insert b returning'), Q('commit'), Q('select 1')],
  'a failed transaction': [Q('begin'), Q('insert a'), Q('select fail'), Q('select 1'), Q('rollback'), Q('insert b')],
  'a failed transaction that commits': [Q('begin'), Q('insert a'), Q('select fail'), Q('commit'), Q('select 1')],
  'several statements in one': [
    Q('insert a; insert b; select 1'),
    Q('begin; insert c; commit'),
    Q('insert d; select fail'),
    Q('begin; insert f; commit; select fail'),
  ],
  [ROLLED_BACK]: [Q('begin; insert e; rollback; select 1'), Q('insert a')],
  extended: [
    Buffer.concat([x('select 2'), S]),
    Buffer.concat([x('insert a returning'), S]),
    Buffer.concat([x('select fail'), x('insert b'), S]),
    S,
    Buffer.concat([x('insert c', 'n'), S]),
  ],
  'a pipeline with a Sync each': [
    Buffer.concat([
      x('select 1'),
      S,
      x('insert a'),
      S,
      x('select fail'),
      S,
      x('insert b returning'),
      S,
      x('select 2'),
      S,
    ]),
  ],
  'a pipeline with one Sync': [
    Buffer.concat([x('begin'), x('insert a'), x('select 1'), x('commit'), S, Q('select 1')]),
  ],
  'a pipelined transaction': [
    Buffer.concat([Q('begin'), Q('insert a'), x('insert b returning'), S, Q('commit'), Q('insert c')]),
  ],
  'a copy': [Q('copy t from stdin'), Buffer.concat([d('one\n'), d('two\n'), c]), Q('select 1')],
  'a copy in a transaction': [
    Q('begin'),
    Buffer.concat([Q('copy t from stdin'), d('one\n'), c, Q('insert a')]),
    Q('commit'),
  ],
  'a copy, extended': [Buffer.concat([x('copy t from stdin'), S]), Buffer.concat([d('one\n'), c, S, x('insert a'), S])],
  'a copy that the client fails': [
    Q('copy t from stdin'),
    Buffer.concat([d('one\n'), serialize.copyFail('no')]),
    Q('insert a'),
  ],
};

/** What a conversation comes to. */
export interface Expected {
  readonly heard: Buffer;
  readonly applied: string[];
}

const answers = new Map<readonly Buffer[], Expected>();

/** What the server itself answers, and what it then holds. */
export function direct(steps: readonly Buffer[]): Expected {
  let known = answers.get(steps);
  if (known === undefined) {
    const database = new MadeUpDatabase();
    const server = new MadeUpServer(database);
    known = { heard: Buffer.concat(steps.map((step) => server.feed(step))), applied: database.applied };
    answers.set(steps, known);
  }
  return known;
}
