import { once } from 'node:events';
import * as net from 'node:net';
import { join } from 'node:path';
import { afterEach, describe, expect, it } from 'vitest';
import postgres from '../../codecs/postgres/index.js';
import { pack, RECORD } from '../../core/cluster/records.js';
import { Keeping, type KeptSession, keptCounts } from '../../core/host/pair/keeping.js';
import { listen } from '../../core/io/index.js';
import { KeeperServer, passingUnavailable } from '../../core/io/keeper/index.js';
import { fdOf } from '../../core/io/tcp/index.js';
import type { Wire } from '../../core/io/wire.js';
import { Q, SCRIPTS } from '../kit/conversations.js';
import { LIMITS } from '../kit/engine.js';
import { eventually, tempDir } from '../kit/servers.js';
import { OPENING, type Sent, silent, ToldRig } from '../kit/told.js';

/** What an engine notes of its sessions with the keeper, and what the next one makes of that. Real sockets, one process. */

const unavailable = passingUnavailable();
const ends: (() => unknown)[] = [];
afterEach(async () => {
  for (const end of ends.splice(0).reverse()) await end();
});

const world = () => ({
  codec: postgres,
  cluster: 'c',
  options: {},
  limits: LIMITS,
  shared: () => undefined,
  time: () => 0,
});

/** A client's connection and what the gateway does on it. */
interface Line {
  readonly client: net.Socket;
  readonly heard: () => string;
  readonly wire: Wire;
  readonly rig: ToldRig;
}

class Place {
  readonly path = join(tempDir(), 'keeper', 'socket');
  keeping!: Keeping;
  #number = 0;

  async begin(): Promise<void> {
    const nothing = () => {};
    const on = { onUpgrade: async () => {}, onClaimed: nothing, onRetired: nothing, onGone: nothing };
    const server = await KeeperServer.listen({ path: this.path, log: silent, ...on });
    ends.push(() => server.close());
    await this.next();
  }

  /** Another engine begins; the one before is no more. */
  async next(): Promise<void> {
    if (this.keeping !== undefined) this.keeping.close();
    this.keeping = await eventually(() =>
      Keeping.connect(this.path, `engine${++this.#number}`, silent, async () => {}),
    );
    const { keeping } = this;
    ends.push(() => keeping.close());
  }

  /** A client whose session is told to the keeper; nothing else of it is. */
  async line(session: number): Promise<Line> {
    const { keeping } = this;
    let came: (wire: Wire) => void;
    const served = new Promise<Wire>((done) => (came = done));
    const { memory } = keeping;
    const listener = await listen({ host: '127.0.0.1', port: 0, memory, onWire: (wire) => came(wire) });
    const client = net.connect(listener.port, '127.0.0.1');
    ends.push(() => client.destroy());
    let heard = '';
    client.on('data', (chunk) => (heard += chunk.toString('latin1')));
    client.on('error', () => {});
    const wire = await served;
    await listener.close();
    const rig = new ToldRig();
    ends.push(() => rig.stop());
    const fd = fdOf(wire);
    keeping.keep(session, fd);
    keeping.append(RECORD.open, session, pack({ ...OPENING, kept: keptCounts(fd, 0, 0) }));
    keeping.append(RECORD.capsule, session, rig.records[1].bytes);
    return { client, heard: () => heard, wire, rig };
  }

  /** The client asks something and is answered, all of which is noted. */
  async talk(session: number, { client, wire, rig, heard }: Line, step: Buffer): Promise<void> {
    const before = heard().length;
    const said = rig.heard().length;
    const from = rig.records.length;
    await this.read(client, wire, step);
    rig.say(step);
    for (const { kind, bytes } of rig.records.slice(from)) this.keeping.append(kind, session, bytes);
    const answer = rig.heard().subarray(said);
    wire.write(answer);
    await eventually(() => heard().length === before + answer.length);
    await this.keeping.settled();
  }

  /** The client says something, which this engine reads. */
  async read(client: net.Socket, wire: Wire, bytes: Buffer): Promise<void> {
    let left = bytes.length;
    const all = new Promise<void>((done) => {
      wire.onData = (chunk) => {
        left -= chunk.length;
        if (left > 0) return;
        wire.pause();
        done();
      };
    });
    client.write(bytes);
    wire.resume();
    await all;
  }

  /** What the next engine finds, in the order in which it was held. */
  async found(): Promise<KeptSession[]> {
    await this.keeping.settled();
    await this.next();
    return this.keeping.sessions(world, () => 0);
  }
}

async function place(): Promise<Place> {
  const made = new Place();
  await made.begin();
  return made;
}

describe.skipIf(unavailable !== null)('notes of sessions', () => {
  it('say how a session is, and what its client was not told is told by the next engine', async () => {
    const here = await place();
    const line = await here.line(1);
    for (const step of SCRIPTS['a transaction']) await here.talk(1, line, step);
    // Noted, and not said any more.
    const { rig, client, wire, heard } = line;
    const before = heard().length;
    const from = rig.records.length;
    const step = Q('select 3');
    await here.read(client, wire, step);
    rig.say(step);
    const notes = rig.records.slice(from);
    for (const { kind, bytes } of notes) here.keeping.append(kind, 1, bytes);
    const [found, ...more] = await here.found();
    expect(more).toEqual([]);
    expect(found.shadow).toMatchObject({ received: rig.received, said: rig.said.length });
    wire.destroy();
    const next = here.keeping.wire(found);
    await eventually(() => heard().length > before);
    expect(heard()).toBe(rig.said.toString('latin1'));
    next.destroy();
    here.keeping.drop(found.key);
    await once(client, 'close');
  });

  it('go on under the same key from engine to engine', async () => {
    const here = await place();
    const line = await here.line(1);
    await here.talk(1, line, Q('select 1'));
    for (let engine = 0; engine < 3; engine++) {
      const [found] = await here.found();
      const wire = here.keeping.wire(found);
      here.keeping.inherit(7, found.key);
      expect(here.keeping.inherits(found.key)).toBe(true);
      await here.talk(7, { ...line, wire }, Q(`select ${engine}`));
      expect(here.keeping.sessions(world, () => 0)).toEqual([]);
    }
    const [found] = await here.found();
    expect(found.shadow).toMatchObject({ received: line.rig.received, said: line.rig.said.length });
    expect(found.key).toMatch(/^engine1 /);
  });

  it('lack nothing that was read right before the end', async () => {
    const here = await place();
    const [one, other] = [await here.line(1), await here.line(2)];
    await here.talk(1, one, Q('select 1'));
    await here.talk(2, other, Q('select 1'));
    const last = Q(`select 2 ${'x'.repeat(20_000)}`);
    await here.read(one.client, one.wire, last.subarray(0, 15_000));
    here.keeping.append(RECORD.client, 1, last.subarray(0, 15_000));
    await here.read(one.client, one.wire, last.subarray(15_000));
    const found = await here.found();
    expect(found.map(({ shadow }) => shadow.received)).toEqual([one.rig.received + last.length, other.rig.received]);
    for (const session of found) here.keeping.wire(session);
    // The engine after that finds it among the notes.
    for (const [at, { key }] of found.entries()) here.keeping.inherit(at + 1, key);
    expect((await here.found()).map(({ shadow }) => shadow.received)).toEqual([
      one.rig.received + last.length,
      other.rig.received,
    ]);
  });

  it('with a gap are of no use, and that is seen', async () => {
    const here = await place();
    const lines = [await here.line(1), await here.line(2), await here.line(3)];
    for (const [at, line] of lines.entries()) await here.talk(at + 1, line, Q('select 1'));
    // Two have read something that nobody knows: of one of them it is overwritten. One has said what nobody knows.
    await here.read(lines[0].client, lines[0].wire, Q('select 5'));
    await here.read(lines[1].client, lines[1].wire, Q('select 6'));
    lines[2].wire.write(Buffer.from('more'));
    const found = await here.found();
    for (const session of found) {
      expect(() => here.keeping.wire(session)).toThrowError(expect.objectContaining({ code: 'OUTLIVE_TAKEOVER_GAP' }));
    }
    expect(found).toHaveLength(3);
    for (const [at, { key, fd }] of found.entries()) {
      const closed = once(lines[at].client, 'close');
      lines[at].wire.destroy();
      here.keeping.release(key, fd);
      await closed;
    }
  });

  it('that do not fit or are not whole are counted, and their connections closed', async () => {
    const here = await place();
    const lines = [await here.line(1), await here.line(2), await here.line(3)];
    await here.talk(1, lines[0], Q('select 1'));
    here.keeping.append(RECORD.acked + 90, 2, Buffer.from('what is that'));
    // Cut off: as long as the engine that wrote it lived.
    const client = (here.keeping as unknown as { client: { note(key: string, bytes: Uint8Array): void } }).client;
    client.note('engine1 3', Buffer.from([RECORD.client, 0, 0, 1, 0, 65]));
    const closed = [1, 2].map((at) => once(lines[at].client, 'close'));
    for (const { wire } of lines) await here.keeping.settled().then(() => wire.pause());
    for (const at of [1, 2]) lines[at].wire.destroy();
    expect(await here.found()).toHaveLength(1);
    expect(here.keeping.unusable).toBe(2);
    await Promise.all(closed);
  });

  it('are told whole again when they have grown, in proportion', async () => {
    const here = await place();
    await here.line(1);
    const { keeping } = here;
    const bytes = Buffer.alloc(10_000);
    const say = (times: number) => {
      for (let n = 0; n < times; n++) keeping.append(RECORD.say, 1, bytes);
    };
    say(6);
    expect(keeping.grown(1)).toBe(false);
    say(1);
    expect(keeping.grown(1)).toBe(true);
    keeping.append(RECORD.capsule, 1, Buffer.alloc(3_000_000));
    say(100);
    expect(keeping.grown(1)).toBe(false);
    say(501);
    expect(keeping.grown(1)).toBe(true);
    expect(keeping.grown(2)).toBe(false);
  });

  it('are safe when the kernel has them, in order', async () => {
    const here = await place();
    const { keeping } = here;
    const safe: number[] = [];
    keeping.onSafe = (count) => safe.push(count);
    const line = await here.line(1);
    const before = keeping.append(RECORD.say, 1, Buffer.from('1'));
    expect(keeping.append(RECORD.say, 1, Buffer.from('2'))).toBe(before + 1);
    expect(safe).toEqual([]);
    await eventually(() => safe.length > 0);
    expect(safe.at(-1)).toBe(before + 1);
    line.wire.pause();
  });
});

describe.skipIf(unavailable !== null)('a listening socket', () => {
  it('goes on with its address, and with another one in the configuration it is let go of', async () => {
    const here = await place();
    const nothing = { host: '127.0.0.1', port: 0, onWire: () => {} };
    const [stays, goes] = [await listen(nothing), await listen(nothing)];
    here.keeping.keepListener('main 127.0.0.1:1', stays.fd);
    here.keeping.keepListener('other 127.0.0.1:2', goes.fd);
    const facts = (n: number): Sent['bytes'] => pack({ cluster: 'c', database: `d${n}`, facts: { n } });
    here.keeping.append(RECORD.facts, 0, facts(1));
    await here.keeping.settled();
    await here.next();
    await Promise.all([stays.close(), goes.close()]);
    expect(here.keeping.listener('main 127.0.0.1:3')).toBeNull();
    expect(here.keeping.listener('main 127.0.0.1:1')).toBeGreaterThan(0);
    here.keeping.keepListener('main 127.0.0.1:1', -1);
    expect(here.keeping.sessions(world, () => 0)).toEqual([]);
    await here.keeping.settled();
    await eventually(async () => {
      const refused = net.connect(goes.port, '127.0.0.1');
      const [how] = await Promise.race([once(refused, 'error'), once(refused, 'connect').then(() => [null])]);
      refused.destroy();
      return (how as NodeJS.ErrnoException | null)?.code === 'ECONNREFUSED';
    });
    const accepted = net.connect(stays.port, '127.0.0.1');
    ends.push(() => accepted.destroy());
    await once(accepted, 'connect');
  });
});
