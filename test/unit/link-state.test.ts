import { beforeEach, describe, expect, it } from 'vitest';
import { type Effect, FRAME, type Hello, type LinkConfig, LinkState } from '../../core/cluster/link/index.js';
import { CodedError } from '../../core/contract/index.js';
import { type Randomness, randomness } from '../kit/random.js';

const BEAT = 200;
const SILENCE = 1000;
const HANDSHAKE = 3000;

function config(name: string, peer: string | null, more: Partial<LinkConfig> = {}): LinkConfig {
  return {
    name,
    peer,
    cluster: 'pair',
    version: { major: 1, minor: 0 },
    incarnation: `${name}-1`,
    dials: peer !== null,
    beatMs: BEAT,
    silenceMs: SILENCE,
    handshakeMs: HANDSHAKE,
    backoffMs: [100, 2000],
    ...more,
  };
}

/** One side, its state and what it was told to do. */
class Side {
  state: LinkState;
  epoch = 1;
  ups: Hello[] = [];
  downs: CodedError[] = [];
  refusals: CodedError[] = [];
  beats = 0;
  dials = 0;

  constructor(readonly config: LinkConfig) {
    this.state = new LinkState(config);
  }

  get codes(): string[] {
    return this.refusals.map(({ code }) => code);
  }
}

interface End {
  readonly side: Side;
  /** As the side's state calls it; -1 when that state is gone. */
  id: number;
  readonly inbox: { type: number; body: Record<string, unknown> }[];
  /** Whether it was told to close, or that the other end did. */
  closed: boolean;
}

interface Pipe {
  readonly ends: readonly [End, End];
  readonly number: number;
}

/** Two sides, the connections between them and the time. What happens next is chosen at random. */
class Net {
  now = 1000;
  pipes: Pipe[] = [];
  cut = false;
  made = 0;
  /** The number of the connection that each side believes in. */
  links = new Map<Side, number>();
  private wants: { side: Side; id: number }[] = [];

  constructor(
    readonly a: Side,
    readonly b: Side,
    readonly random: Randomness,
  ) {}

  start(): void {
    this.do(this.a, this.a.state.start(this.now));
    this.do(this.b, this.b.state.start(this.now));
  }

  do(side: Side, effects: readonly Effect[]): void {
    for (const effect of effects) {
      if (effect.do === 'dial') {
        side.dials++;
        this.wants.push({ side, id: effect.id });
        continue;
      }
      const pipe = this.pipes.find(({ ends }) => ends.some((end) => end.side === side && end.id === effect.id));
      const [mine, other] = pipe === undefined ? [] : pipe.ends[0].side === side ? pipe.ends : [...pipe.ends].reverse();
      if (effect.do === 'send' && !this.cut) other?.inbox.push(JSON.parse(JSON.stringify(effect)));
      if (effect.do === 'beat') {
        side.beats++;
        const body = { epoch: side.state.claim(side.epoch), statistics: null };
        if (!this.cut) other?.inbox.push({ type: FRAME.beat, body });
      }
      if (effect.do === 'up') {
        side.ups.push(effect.hello);
        this.links.set(side, pipe!.number);
      }
      if (effect.do === 'down') {
        side.downs.push(effect.error);
        this.links.delete(side);
      }
      if (effect.do === 'close') this.wants = this.wants.filter((want) => want.side !== side || want.id !== effect.id);
      if (effect.do === 'close' && effect.error !== null) side.refusals.push(effect.error);
      if ((effect.do === 'down' || effect.do === 'close') && mine !== undefined) mine.closed = true;
    }
  }

  /** Lets one thing happen; false when nothing can. */
  step(): boolean {
    const choices: (() => void)[] = [];
    for (const want of this.wants) choices.push(() => this.connect(want));
    for (const pipe of this.pipes) {
      for (const [at, end] of pipe.ends.entries()) {
        const other = pipe.ends[1 - at];
        if (end.inbox.length > 0) choices.push(() => this.deliver(end));
        else if (other.closed && !end.closed && !this.cut) {
          choices.push(() => {
            end.closed = true;
            const error = this.links.get(end.side) === pipe.number ? null : new CodedError('X', 'network', 'closed');
            this.do(end.side, end.side.state.closed(end.id, error, this.now));
          });
        }
      }
    }
    if (choices.length === 0) return false;
    this.random.one(choices)();
    return true;
  }

  settle(): void {
    for (let steps = 0; this.step(); steps++) if (steps > 10_000) throw new Error(`endless: ${this.random.where}`);
  }

  /** Lets time pass, and everything happen at once. */
  pass(ms: number): void {
    const until = this.now + ms;
    this.settle();
    for (;;) {
      const at = Math.min(this.a.state.wakeAt, this.b.state.wakeAt);
      if (at > until) break;
      this.now = Math.max(this.now, at);
      for (const side of [this.a, this.b]) {
        if (side.state.wakeAt <= this.now) this.do(side, side.state.tick(this.now));
      }
      this.settle();
    }
    this.now = until;
  }

  /** The process of a side is another one: what the old one had is gone. */
  begunAnew(side: Side): void {
    this.links.delete(side);
    this.wants = this.wants.filter((want) => want.side !== side);
    for (const { ends } of this.pipes) for (const end of ends) if (end.side === side) end.id = -1;
  }

  private connect(want: { side: Side; id: number }): void {
    this.wants.splice(this.wants.indexOf(want), 1);
    if (this.cut) return;
    const { side, id } = want;
    const other = side === this.a ? this.b : this.a;
    const number = ++this.made;
    const theirs = other.state.accepted(this.now);
    const ends: [End, End] = [
      { side, id, inbox: [], closed: false },
      { side: other, id: theirs, inbox: [], closed: false },
    ];
    this.pipes.push({ ends, number });
    for (const end of ends) {
      const name = (end.side === this.a ? this.b : this.a).config.name;
      const proof = { name, proves: (claimed: string) => claimed === name };
      this.do(end.side, end.side.state.opened(end.id, `${end.side.config.name}${number}`, end.side.epoch, proof));
    }
  }

  private deliver(end: End): void {
    const { type, body } = end.inbox.shift()!;
    const { state } = end.side;
    const { id } = end;
    state.heard(id, this.now);
    if (type === FRAME.hello) this.do(end.side, state.hello(id, body, this.now));
    if (type === FRAME.helloAck) this.do(end.side, state.helloAck(id, body, this.now));
    if (type === FRAME.beat) this.do(end.side, state.beat(id, body.epoch, this.now));
    if (type === FRAME.error) this.do(end.side, state.refused(id, body, this.now));
    if (type === FRAME.bye) this.do(end.side, state.left(id, this.now));
  }
}

describe('two gateways', () => {
  it('agree on one connection, in whatever order things happen, and keep it', () => {
    for (let round = 0; round < 500; round++) {
      const net = new Net(new Side(config('a', 'b')), new Side(config('b', 'a')), randomness());
      const { where } = net.random;
      net.start();
      net.pass(20_000);
      expect([net.a.ups.length, net.b.ups.length], where).toEqual([1, 1]);
      expect(net.links.get(net.a), where).toBe(net.links.get(net.b));
      expect([net.a.downs, net.b.downs, net.a.refusals], where).toEqual([[], [], []]);
      expect(net.a.state.candidates + net.b.state.candidates, where).toBe(0);
      expect(net.a.beats, where).toBeGreaterThan(80);
    }
  });

  it('agree again after cuts, with a process begun anew on either side', () => {
    for (let round = 0; round < 200; round++) {
      const random = randomness();
      const net = new Net(new Side(config('a', 'b')), new Side(config('b', 'a')), random);
      net.start();
      for (let fault = 0; fault < 4; fault++) {
        net.pass(random.below(4000));
        if (random.below(2) === 0) {
          net.cut = true;
          for (const { ends } of net.pipes) for (const end of ends) end.inbox.length = 0;
          net.pass(random.below(3000));
          // What was cut for long is lost for both; a short cut loses bytes, which TCP does not do: the pipes are gone.
          for (const { ends } of net.pipes) {
            for (const end of ends) {
              if (!end.closed) net.do(end.side, end.side.state.closed(end.id, null, net.now));
              end.closed = true;
            }
          }
          net.cut = false;
        } else {
          const side = random.one([net.a, net.b]);
          const next = new LinkState({ ...side.config, incarnation: `new${round}-${fault}` });
          for (const { ends } of net.pipes) for (const end of ends) if (end.side === side) end.closed = true;
          // A host that died says nothing; a process that died is noticed.
          const silent = random.below(2) === 0;
          if (silent) for (const { ends } of net.pipes) for (const end of ends) end.inbox.length = 0;
          net.pipes = net.pipes.filter(() => !silent);
          net.begunAnew(side);
          side.state = next;
          side.epoch = random.one([0, 1]);
          net.do(side, next.start(net.now));
        }
      }
      net.pass(15_000);
      expect(net.links.get(net.a), random.where).toBe(net.links.get(net.b));
      expect(net.links.get(net.a), random.where).toBeDefined();
      const ups = net.a.ups.length;
      net.pass(20_000);
      expect(net.a.ups.length, random.where).toBe(ups);
    }
  });

  it('need only one that connects', () => {
    const net = new Net(new Side(config('a', 'b', { dials: false })), new Side(config('b', 'a')), randomness());
    net.start();
    net.pass(100);
    expect([net.a.ups.length, net.b.ups.length, net.a.dials]).toEqual([1, 1, 0]);
  });

  it('take leave', () => {
    const net = new Net(new Side(config('a', 'b')), new Side(config('b', 'a')), randomness());
    net.start();
    net.pass(100);
    net.do(net.a, net.a.state.close(net.now));
    net.settle();
    expect([net.a.downs[0].code, net.b.downs[0].code]).toEqual(['OUTLIVE_PAIR_DOWN', 'OUTLIVE_PAIR_LEFT']);
    expect(net.a.state.wakeAt).toBe(Number.POSITIVE_INFINITY);
    expect(net.b.state.wakeAt).toBeGreaterThan(net.now);
  });
});

describe('a refusal', () => {
  const refusals: readonly [string, string, Partial<LinkConfig>, RegExp][] = [
    [
      'another major version',
      'OUTLIVE_PAIR_VERSION',
      { version: { major: 0, minor: 9 } },
      /speaks version 0\.9, .* 1\.0/,
    ],
    ['another name', 'OUTLIVE_PAIR_NAME', { name: 'c' }, /calls itself "c", expected is "b"/],
    ['a wish for another', 'OUTLIVE_PAIR_NAME', { peer: 'c' }, /"b" wants to speak with "c", this is "a"/],
    ['another pair', 'OUTLIVE_PAIR_NAME', { cluster: 'other' }, /belongs to the pair "other"/],
    ['this gateway itself', 'OUTLIVE_PAIR_NAME', { name: 'a', peer: 'b' }, /as this gateway itself/],
    ['this process itself', 'OUTLIVE_PAIR_NAME', { incarnation: 'a-1' }, /as this gateway itself/],
  ];
  it.each(refusals)('of %s is named on both sides, and tried again ever more slowly', (_, code, more, text) => {
    const net = new Net(new Side(config('a', 'b')), new Side(config('b', 'a', more)), randomness());
    net.start();
    net.pass(20_000);
    expect([net.a.ups.length, net.b.ups.length]).toEqual([0, 0]);
    expect(net.a.codes).toContain(code);
    expect(net.a.refusals.some(({ message }) => text.test(message))).toBe(true);
    expect(net.b.codes).toContain(code);
    expect(net.a.dials).toBeGreaterThan(8);
    expect(net.a.dials).toBeLessThan(20);
  });

  it('does not keep the right peer out, and the other way round', () => {
    const net = new Net(new Side(config('a', 'b')), new Side(config('b', 'a')), randomness());
    net.start();
    net.pass(100);
    const { state } = net.a;
    const id = state.accepted(net.now);
    state.opened(id, 'n', 1, { name: 'b', proves: () => true });
    const effects = state.hello(id, { magic: 'outlive-pair', version: { major: 9, minor: 0 } }, net.now);
    expect(effects.map((effect) => effect.do)).toEqual(['send', 'close']);
    net.pass(5000);
    expect([net.a.ups.length, net.a.downs.length]).toEqual([1, 0]);
  });

  it('meets a name that the handshake did not prove', () => {
    const state = new LinkState(config('a', null));
    const id = state.accepted(0);
    state.opened(id, 'n', 1, { name: null, proves: (name) => name === 'b' });
    const effects = state.hello(id, { ...HELLO, name: 'c' }, 0);
    expect(refusal(effects)?.code).toBe('OUTLIVE_PAIR_AUTH');
  });

  it('meets whatever is no hello', () => {
    const wrong: Record<string, unknown>[] = [
      {},
      { ...HELLO, magic: 'x' },
      { ...HELLO, version: '1' },
      { ...HELLO, version: { major: 1 } },
      { ...HELLO, name: '' },
      { ...HELLO, name: 'x'.repeat(129) },
      { ...HELLO, peer: 5 },
      { ...HELLO, epoch: -1 },
      { ...HELLO, epoch: 1.5 },
      { ...HELLO, epoch: '1' },
      { ...HELLO, seenEpoch: null },
      { ...HELLO, incarnation: undefined },
      { ...HELLO, nonce: 1 },
    ];
    for (const body of wrong) {
      const state = new LinkState(config('a', 'b'));
      const id = state.accepted(0);
      state.opened(id, 'n', 1, PROOF);
      expect(refusal(state.hello(id, body, 0))?.code, JSON.stringify(body)).toBe('OUTLIVE_PAIR_PROTOCOL');
    }
  });

  it('meets a handshake out of order', () => {
    const fresh = (): { state: LinkState; id: number } => {
      const state = new LinkState(config('a', 'b'));
      const id = state.accepted(0);
      state.opened(id, 'n', 1, PROOF);
      return { state, id };
    };
    let { state, id } = fresh();
    expect(refusal(state.helloAck(id, { nonce: 'n' }, 0))?.message).toContain('agreed to nothing');
    ({ state, id } = fresh());
    state.hello(id, HELLO, 0);
    expect(refusal(state.helloAck(id, { nonce: 'other' }, 0))?.message).toContain('another greeting');
    ({ state, id } = fresh());
    state.hello(id, HELLO, 0);
    expect(refusal(state.hello(id, HELLO, 0))?.message).toContain('hello twice');
    ({ state, id } = fresh());
    expect(refusal(state.beat(id, 1, 0))?.message).toContain('outside of the link');
  });

  it('meets who does not speak', () => {
    const state = new LinkState(config('a', 'b', { dials: false }));
    state.start(0);
    const id = state.accepted(5);
    expect(state.wakeAt).toBe(5 + HANDSHAKE);
    expect(state.tick(5 + HANDSHAKE - 1)).toEqual([]);
    expect(refusal(state.tick(5 + HANDSHAKE))?.code).toBe('OUTLIVE_PAIR_SILENT');
    expect(state.candidates).toBe(0);
    expect(state.closed(id, null, 9999)).toEqual([]);
  });
});

const HELLO: Record<string, unknown> = {
  magic: 'outlive-pair',
  version: { major: 1, minor: 3 },
  name: 'b',
  peer: 'a',
  cluster: 'pair',
  epoch: 5,
  seenEpoch: 0,
  incarnation: 'b-1',
  nonce: 'm',
};
const PROOF = { name: 'b', proves: (name: string) => name === 'b' };

function refusal(effects: readonly Effect[]): CodedError | null {
  const end = effects.find((effect) => effect.do === 'close' || effect.do === 'down');
  return end?.do === 'close' || end?.do === 'down' ? end.error : null;
}

describe('epochs', () => {
  let state: LinkState;
  let id: number;
  /** The peer says hello on a new connection and agrees. */
  const greet = (more: Record<string, unknown>): CodedError | null => {
    if (state.link !== null) state.closed(state.link, null, 0);
    id = state.accepted(0);
    const [hello] = state.opened(id, 'n', 1, PROOF);
    said = (hello as { body: Hello }).body;
    return refusal(state.hello(id, { ...HELLO, ...more }, 0)) ?? refusal(state.helloAck(id, { nonce: 'n' }, 0));
  };
  let said: Hello;

  beforeEach(() => {
    state = new LinkState(config('a', 'b', { dials: false }));
    expect(greet({ epoch: 5 })).toBeNull();
  });

  it('may stay and grow', () => {
    expect(state.beat(id, 5, 0)).toEqual([]);
    expect(state.beat(id, 6, 0)).toEqual([]);
    expect(greet({ epoch: 6 })).toBeNull();
    expect(said.seenEpoch).toBe(6);
    expect(state.epochOf('b')).toBe(6);
    expect(state.epochOf('c')).toBe(0);
  });

  it('must not fall: in the hello of the same process and of another one, in a beat', () => {
    const lower = greet({ epoch: 4 });
    expect(lower?.code).toBe('OUTLIVE_PAIR_EPOCH');
    expect(lower?.message).toContain('claims epoch 4, it had 5 before');
    expect(greet({ epoch: 4, incarnation: 'b-2' })?.code).toBe('OUTLIVE_PAIR_EPOCH');
    expect(greet({ epoch: 0 })?.code).toBe('OUTLIVE_PAIR_EPOCH');
    expect(greet({ epoch: 5 })).toBeNull();
    expect(refusal(state.beat(id, 4, 0))?.code).toBe('OUTLIVE_PAIR_EPOCH');
    expect(state.link).toBeNull();
    expect(state.epochOf('b')).toBe(5);
  });

  it('may be unknown to a process that was begun anew, until it knows one; it is told the one that was seen', () => {
    expect(greet({ epoch: 0, incarnation: 'b-2' })).toBeNull();
    expect(said.seenEpoch).toBe(5);
    expect(state.beat(id, 0, 0)).toEqual([]);
    expect(greet({ epoch: 0, incarnation: 'b-2' })).toBeNull();
    expect(refusal(state.beat(id, 4, 0))?.code).toBe('OUTLIVE_PAIR_EPOCH');
    expect(greet({ epoch: 0, incarnation: 'b-3' })).toBeNull();
    expect(state.beat(id, 7, 0)).toEqual([]);
    expect(refusal(state.beat(id, 0, 0))?.code).toBe('OUTLIVE_PAIR_EPOCH');
  });

  it('are claimed as the peer knows them by a process that has learnt less from others, and has had no link', () => {
    const fresh = new LinkState(config('a', 'b', { dials: false }));
    const claims = (seenEpoch: number): number => {
      const own = fresh.accepted(0);
      const [hello] = fresh.opened(own, 'n', 7, PROOF);
      fresh.hello(own, { ...HELLO, seenEpoch }, 0);
      // The peer has had more from it before, and ends the connection.
      fresh.closed(own, null, 0);
      return (hello as { body: Hello }).body.epoch;
    };
    expect([claims(9), claims(9), fresh.claim(8), fresh.claim(10)]).toEqual([7, 9, 9, 10]);
    // One that had a link is the old owner if another one has had more since.
    expect(greet({ epoch: 5, seenEpoch: 9 })).toBeNull();
    expect(greet({ epoch: 5, seenEpoch: 9 })).toBeNull();
    expect([said.epoch, state.claim(1)]).toEqual([1, 1]);
  });

  it('of the wrong shape are refused', () => {
    expect(refusal(state.beat(id, 'x', 0))?.code).toBe('OUTLIVE_PAIR_PROTOCOL');
  });
});

describe('a link', () => {
  let state: LinkState;
  let id: number;

  const link = (incarnation = 'b-1', now = 0): Effect[] => {
    id = state.accepted(now);
    state.opened(id, 'n', 1, PROOF);
    state.hello(id, { ...HELLO, incarnation }, now);
    return state.helloAck(id, { nonce: 'n' }, now);
  };

  beforeEach(() => {
    state = new LinkState(config('a', 'b', { dials: false }));
    state.start(0);
    expect(link().map((effect) => effect.do)).toEqual(['send', 'up']);
  });

  it('is one at a time: another one of the same process is refused without noise', () => {
    const first = state.link;
    expect(link().map((effect) => effect.do)).toEqual(['send', 'close']);
    expect(state.link).toBe(first);
  });

  it('gives way to a peer that was begun anew', () => {
    expect(link('b-2').map((effect) => effect.do)).toEqual(['down', 'send', 'up']);
    expect(state.link).toBe(id);
    expect(state.peer?.incarnation).toBe('b-2');
  });

  it('beats, and is down when nothing is heard', () => {
    const first = state.link!;
    for (let now = BEAT; now < SILENCE; now += BEAT) {
      expect(state.wakeAt).toBe(now);
      expect(state.tick(now)).toEqual([{ do: 'beat', id: first }]);
    }
    expect(refusal(state.tick(SILENCE))?.code).toBe('OUTLIVE_PAIR_SILENT');
    expect(state.link).toBeNull();
  });

  it('does not beat when statistics were sent in time', () => {
    state.beaten(150);
    expect(state.wakeAt).toBe(150 + BEAT);
    expect(state.tick(BEAT)).toEqual([]);
  });

  it('lives while the peer is heard', () => {
    for (let now = BEAT; now < 20 * SILENCE; now += BEAT) {
      state.heard(id, now);
      expect(state.tick(now)).toEqual([{ do: 'beat', id }]);
    }
  });

  it('gets two beats to be heard in after this process stood still itself', () => {
    state.tick(BEAT);
    expect(state.tick(30_000)).toEqual([{ do: 'beat', id }]);
    expect(state.tick(30_000 + BEAT)).toEqual([{ do: 'beat', id }]);
    expect(refusal(state.tick(30_000 + 2 * BEAT))?.code).toBe('OUTLIVE_PAIR_SILENT');
  });

  it('says when the peer was heard, which it counts as while this process stood still', () => {
    state.tick(BEAT);
    state.heard(id, 300);
    expect(state.heardAt(400)).toBe(300);
    // It is not asked again before there was time to read.
    expect([30_000, 30_010].map((now) => now - state.heardAt(now))).toEqual(Array(2).fill(SILENCE - 2 * BEAT));
    state.tick(30_000);
    expect(state.heardAt(30_000 + BEAT)).toBe(29_400);
    // What a link ended with was heard, too.
    state.heard(id, 30_300);
    state.refused(id, { code: 'OUTLIVE_PAIR_SILENT', message: 'was not heard' }, 30_300);
    expect(state.heardAt(60_000)).toBe(30_300);
  });

  it('that goes down at once each time is built up ever more slowly; one that lived is built up at once', () => {
    const gaps: number[] = [];
    state = new LinkState(config('a', 'b'));
    let now = 0;
    state.start(now);
    for (let round = 0; round < 7; round++) {
      link(`b-${round}`, now);
      state.closed(id, null, now);
      gaps.push(state.wakeAt - now);
      now = state.wakeAt;
      state.tick(now);
    }
    expect(gaps.slice(0, 4)).toEqual([100, 200, 400, 800]);
    expect(gaps.at(-1)).toBe(2000);
    link('b-9', now);
    state.closed(id, null, now + 2000);
    expect(state.wakeAt - (now + 2000)).toBe(100);
  });

  it('ends with what the peer says, if it says something known', () => {
    const error = refusal(state.refused(id, { code: 'OUTLIVE_PAIR_EPOCH', message: 'x'.repeat(1000) }, 0));
    expect(error?.code).toBe('OUTLIVE_PAIR_EPOCH');
    expect(error?.message.length).toBeLessThan(400);
    link();
    expect(refusal(state.refused(id, { code: 'rm -rf', message: 5 }, 0))?.code).toBe('OUTLIVE_PAIR_PROTOCOL');
  });
});
