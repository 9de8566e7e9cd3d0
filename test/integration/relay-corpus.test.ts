import { createServer, connect as netConnect, type Server } from 'node:net';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { CORPUS, CORPUS_RESET, CORPUS_SCHEMA, type Script } from '../kit/corpus.js';
import {
  type Chop,
  connectPg,
  message,
  type PgClient,
  RawClient,
  type RawMessage,
  startupPacket,
  useGateway,
} from '../kit/gateway.js';
import { useServer } from '../kit/servers.js';

/**
 * Every session of the corpus runs against the server itself, twice, and through the gateway. What differs between the two direct
 * runs is masked; everything else must be the same bytes. Each session is said step by step, byte by byte, all at once, and with a
 * server whose bytes arrive in pieces.
 */

const SEED = Number(process.env.SEED ?? Math.floor(Math.random() * 2 ** 31));
const WAIT_MS = 1_500;
const ONLY = process.env.SCRIPT;

const holder = useServer({ settings: { fsync: 'off', max_prepared_transactions: '10' } });
let admin: PgClient;
beforeAll(async () => {
  admin = await connectPg(holder.server);
  await admin.query(CORPUS_SCHEMA);
});
afterAll(async () => {
  await admin?.end();
});
const plain = useGateway(holder);

const pieces: { server: Server | null; port: number } = { server: null, port: 0 };
beforeAll(async () => {
  pieces.server = await startPieces(() => holder.server.port);
  pieces.port = (pieces.server.address() as { port: number }).port;
});
afterAll(() => {
  pieces.server?.close();
});
const cut = useGateway(() => [{ port: pieces.port }]);

type How = 'step' | 'bytes' | 'once';

/** Plays a script and gives back all that the client heard. */
async function play(port: number, script: Script, how: How): Promise<RawMessage[]> {
  await admin.query(CORPUS_RESET);
  const client = await RawClient.open({ port });
  const chop: Chop = how === 'bytes' ? 'bytes' : 'whole';
  try {
    const params = { user: 'postgres', database: 'postgres', ...script.params };
    await client.write(startupPacket(params, script.protocol), chop);
    const greeting = await client.until('ZE', 1, WAIT_MS);
    if (greeting.at(-1)?.type === 'Z') {
      if (how === 'once') await client.write(Buffer.concat(script.steps.map((step) => step.bytes)));
      for (const step of script.steps) {
        if (how !== 'once') await client.write(step.bytes, chop);
        await client.until(step.until, step.count, WAIT_MS);
      }
      await client.write(message('X'));
    }
    await client.untilClosed(WAIT_MS);
  } catch (error) {
    // What was heard up to here tells more than the error.
    if (!client.closed) client.messages.push({ type: '?', bytes: Buffer.from((error as Error).message) });
  } finally {
    client.destroy();
  }
  return client.messages;
}

/** A message as text, without what is never the same twice: the cancel key, and process ids in notifications. */
function show({ type, bytes }: RawMessage): string {
  let body = bytes.subarray(5);
  if (type === 'K') body = Buffer.alloc(body.length);
  if (type === 'A') body = body.subarray(4);
  const text = body
    .toString('latin1')
    .replace(/[^\x20-\x7e]/g, (ch) => `\\x${ch.charCodeAt(0).toString(16).padStart(2, '0')}`);
  return `${type} ${bytes.length} ${text.length > 600 ? `${text.slice(0, 300)}...${text.slice(-300)}` : text}`;
}

interface Reference {
  readonly lines: string[];
  /** Indexes of messages that differed between two direct runs. */
  readonly masked: Set<number>;
}

const references = new Map<string, Promise<Reference>>();

/** What the server itself answers. */
function reference(script: Script, how: How): Promise<Reference> {
  const key = `${how} ${script.name}`;
  let known = references.get(key);
  if (known === undefined) {
    known = (async () => {
      const first = (await play(holder.server.port, script, how)).map(show);
      const second = (await play(holder.server.port, script, how)).map(show);
      expect(second.map((line) => line[0]).join(''), 'two direct runs').toBe(first.map((line) => line[0]).join(''));
      return { lines: first, masked: new Set([...first.keys()].filter((i) => first[i] !== second[i])) };
    })();
    references.set(key, known);
  }
  return known;
}

async function same(port: number, script: Script, how: How): Promise<void> {
  const { lines, masked } = await reference(script, how === 'bytes' ? 'step' : how);
  const got = (await play(port, script, how)).map(show);
  if (script.differs === 'syntax') {
    const ends = (all: string[]) => all.filter((line) => 'EZ'.includes(line[0]));
    expect(ends(got)).toEqual(ends(lines));
    return;
  }
  const mask = (all: string[]) => all.map((line, i) => (masked.has(i) ? `${line[0]} (masked)` : line));
  const order = (all: string[]) => (script.differs === 'parameters' ? mask(all).sort() : mask(all));
  expect(order(got)).toEqual(order(lines));
}

const scripts = CORPUS.filter(({ name }) => ONLY === undefined || name.includes(ONLY)).map(
  (script) => [script.name, script] as const,
);

describe('step by step', () => {
  it.each(scripts)('%s', async (_, script) => {
    await same(plain.port, script, 'step');
  });
});

describe('byte by byte', () => {
  it.each(scripts)('%s', async (_, script) => {
    await same(plain.port, script, 'bytes');
  });
});

describe('all at once', () => {
  const legal = scripts.filter(([, script]) => script.notAtOnce === undefined);
  it.each(legal)('%s', async (_, script) => {
    await same(plain.port, script, 'once');
  });
});

describe(`a server whose bytes come in pieces (SEED=${SEED})`, () => {
  it.each(scripts)('%s', async (_, script) => {
    await same(cut.port, script, 'step');
  });
});

it('masks little', async () => {
  const all = await Promise.all(references.values());
  const total = all.reduce((sum, { lines }) => sum + lines.length, 0);
  const masked = all.reduce((sum, r) => sum + r.masked.size, 0);
  expect(masked / Math.max(total, 1)).toBeLessThan(0.02);
});

/** Passes bytes on; what the server says goes out in segments of one byte at first, then of a few. */
async function startPieces(target: () => number): Promise<Server> {
  let state = SEED;
  const random = (n: number) => {
    state = (Math.imul(state, 1103515245) + 12345) & 0x7fffffff;
    return (state >> 8) % n;
  };
  const server = createServer({ noDelay: true }, (client) => {
    const backend = netConnect({ host: '127.0.0.1', port: target(), noDelay: true });
    client.pipe(backend);
    let last = Promise.resolve();
    backend.on('data', (chunk: Buffer) => {
      last = last.then(async () => {
        for (let at = 0; at < chunk.length && !client.destroyed; ) {
          const size = at < 600 ? 1 : 1 + random(at < 4000 ? 50 : 30_000);
          const piece = chunk.subarray(at, at + size);
          at += piece.length;
          await new Promise<void>((resolve) => client.write(piece, () => resolve()));
        }
      });
    });
    backend.on('end', () => void last.then(() => client.end()));
    for (const socket of [client, backend]) {
      socket.on('error', () => {});
      socket.on(
        'close',
        () =>
          void last.then(() => {
            client.destroy();
            backend.destroy();
          }),
      );
    }
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return server;
}
