import { describe, expect, it } from 'vitest';
import {
  CodedError,
  type Exchange,
  ProtocolViolation,
  type Reply,
  type TlsFacts,
  type Want,
} from '../../core/contract/index.js';
import { ExchangeStepper, type Step } from '../../core/recovery/exchange.js';

/** Frames of a length byte (itself included) and content; 255 breaks the protocol. */
function frameLength(bytes: Uint8Array, start: number, end: number): number {
  if (start === end) return 0;
  if (bytes[start] === 255) throw new ProtocolViolation('no such frame');
  return bytes[start];
}

const options = { frameLength, peer: 'client', maxFrame: 64 } as const;
const bytes = (...values: number[]): Uint8Array => Uint8Array.from(values);
const sent = (step: Step<unknown>): number[][] => step.send.map((chunk) => [...chunk]);

function* dialogue(log: unknown[]): Exchange<string> {
  yield { want: 'nothing', send: bytes(9) };
  const head = (yield { want: 'bytes', count: 2, send: bytes(1, 2) }) as Uint8Array;
  log.push([...head]);
  const frame = (yield { want: 'frame', send: bytes() }) as Uint8Array;
  log.push([...frame]);
  const secret = yield { want: 'credentials', user: 'u', database: 'd' };
  log.push(secret);
  const last = (yield { want: 'frame', send: bytes(3) }) as Uint8Array;
  log.push([...last]);
  return 'end';
}

const INPUT = [7, 8, 3, 1, 2, 2, 5, 42, 43];

/** Runs the dialogue with the input cut into pieces of `size`. */
function play(size: number): { log: unknown[]; out: number[]; rest: number[]; result: string } {
  const log: unknown[] = [];
  const stepper = new ExchangeStepper(dialogue(log), options);
  const out: number[] = [];
  const note = (step: Step<string>): Step<string> => {
    for (const chunk of sent(step)) out.push(...chunk);
    return step;
  };
  let step = note(stepper.start());
  let at = 0;
  while (step.state === 'bytes' || step.state === 'want') {
    if (step.state === 'want') step = note(stepper.reply({ password: 'p' } as Reply));
    else {
      step = note(stepper.push(Uint8Array.from(INPUT.slice(at, at + size))));
      at += size;
    }
  }
  if (step.state !== 'done') throw new Error('it failed');
  return { log, out, rest: [...step.rest, ...INPUT.slice(at)], result: step.result };
}

describe('the exchange stepper', () => {
  it('gives the same answers however the input is cut, and hands back what is left', () => {
    for (let size = 1; size <= INPUT.length; size++) {
      expect(play(size)).toEqual({
        log: [[7, 8], [3, 1, 2], { password: 'p' }, [2, 5]],
        out: [9, 1, 2, 3],
        rest: [42, 43],
        result: 'end',
      });
    }
  });

  it('keeps earlier frames unchanged while more input is gathered', () => {
    const frames: Uint8Array[] = [];
    function* read(): Exchange<void> {
      for (let i = 0; i < 40; i++) frames.push((yield { want: 'frame' }) as Uint8Array);
    }
    const stepper = new ExchangeStepper(read(), options);
    stepper.start();
    const input: number[] = [];
    for (let i = 0; i < 40; i++) {
      const length = 1 + ((i * 7) % 60);
      input.push(length, ...Array.from({ length: length - 1 }, () => i));
    }
    for (let at = 0; at < input.length; at += 5) {
      const step = stepper.push(Uint8Array.from(input.slice(at, at + 5)));
      if (step.state === 'done') break;
    }
    expect(frames.flatMap((frame) => [...frame])).toEqual(input);
  });

  it('asks the outside for TLS, and refuses plaintext ahead of it', () => {
    function* secure(): Exchange<TlsFacts> {
      yield { want: 'bytes', count: 1 };
      return (yield { want: 'tls', send: bytes(83), alpn: 'x' }) as TlsFacts;
    }
    const good = new ExchangeStepper(secure(), options);
    good.start();
    const step = good.push(bytes(1));
    expect(step).toMatchObject({ state: 'want', want: { want: 'tls', alpn: 'x' } });
    expect(sent(step)).toEqual([[83]]);
    const facts = { endPoint: null, alpn: 'x' };
    expect(good.reply(facts)).toMatchObject({ state: 'done', result: facts });

    for (const peer of ['client', 'server'] as const) {
      const bad = new ExchangeStepper(secure(), { ...options, peer });
      bad.start();
      const refused = bad.push(bytes(1, 22));
      expect(refused).toMatchObject({ state: 'failed', error: { code: 'OUTLIVE_PROTOCOL_VIOLATION', culprit: peer } });
    }
  });

  it('limits frames, also those whose length is not known yet', () => {
    function* read(want: Want): Exchange<void> {
      yield want;
    }
    const tooLarge = { state: 'failed', error: { code: 'OUTLIVE_FRAME_TOO_LARGE', culprit: 'client' } };
    const long = new ExchangeStepper(read({ want: 'frame' }), options);
    long.start();
    expect(long.push(bytes(65))).toMatchObject(tooLarge);
    const count = new ExchangeStepper(read({ want: 'bytes', count: 65 }), options);
    expect(count.start()).toMatchObject(tooLarge);
    const blind = new ExchangeStepper(read({ want: 'frame' }), { ...options, frameLength: () => 0 });
    blind.start();
    expect(blind.push(new Uint8Array(63)).state).toBe('bytes');
    expect(blind.push(new Uint8Array(1))).toMatchObject(tooLarge);
    const exact = new ExchangeStepper(read({ want: 'frame' }), options);
    exact.start();
    expect(exact.push(bytes(64))).toMatchObject({ state: 'bytes' });
    expect(exact.push(new Uint8Array(63))).toMatchObject({ state: 'done' });
    const silly = new ExchangeStepper(read({ want: 'frame' }), { ...options, frameLength: () => Number.NaN });
    silly.start();
    expect(silly.push(bytes(1))).toMatchObject({ state: 'failed', error: { culprit: 'codec' } });
  });

  it('lets the exchange refuse after a breach, and read nothing more', () => {
    function* polite(more: boolean): Exchange<string> {
      try {
        yield { want: 'frame' };
      } catch (error) {
        yield { want: 'nothing', send: bytes(69) };
        if (more) yield { want: 'frame' };
        return (error as CodedError).code;
      }
      return 'fine';
    }
    const good = new ExchangeStepper(polite(false), options);
    good.start();
    const step = good.push(bytes(255));
    expect(step).toMatchObject({ state: 'done', result: 'OUTLIVE_PROTOCOL_VIOLATION' });
    expect(sent(step)).toEqual([[69]]);
    const stubborn = new ExchangeStepper(polite(true), options);
    stubborn.start();
    const cut = stubborn.push(bytes(255, 2, 1));
    expect(cut).toMatchObject({ state: 'failed', error: { code: 'OUTLIVE_PROTOCOL_VIOLATION' } });
    expect(sent(cut)).toEqual([[69]]);
  });

  it('tells the exchange when a want cannot be had', () => {
    function* asks(): Exchange<string> {
      try {
        yield { want: 'random', count: 4 };
      } catch (error) {
        return (error as Error).message;
      }
      return 'had';
    }
    const stepper = new ExchangeStepper(asks(), options);
    expect(stepper.start()).toMatchObject({ state: 'want' });
    expect(stepper.fail(new Error('none left'))).toMatchObject({ state: 'done', result: 'none left' });
    const thrown = new ExchangeStepper(dialogue([]), options);
    thrown.start();
    thrown.push(bytes(7, 8, 1));
    const error = new CodedError('X', 'plugin', 'x');
    expect(thrown.fail(error)).toMatchObject({ state: 'failed', error });
  });

  it('runs the clean-up when it is given up, even one that wants something', () => {
    const ran: string[] = [];
    function* clean(): Exchange<void> {
      try {
        yield { want: 'frame' };
      } finally {
        ran.push('first');
        yield { want: 'nothing', send: bytes(88) };
        ran.push('never');
      }
    }
    const outer = function* (): Exchange<void> {
      try {
        yield* clean();
      } finally {
        ran.push('outer');
      }
    };
    const stepper = new ExchangeStepper(outer(), options);
    stepper.start();
    stepper.abort();
    stepper.abort();
    expect(ran).toEqual(['first', 'outer']);
    expect(() => stepper.push(bytes(1))).toThrow('not running');
  });
});
