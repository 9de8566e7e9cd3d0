import { describe, expect, it } from 'vitest';
import tds from '../../codecs/tds/index.js';
import { LOGIN7, PRELOGIN, packets, TABULAR_RESULT } from '../../codecs/tds/packet.js';
import { TDS_7_4 } from '../../codecs/tds/version.js';
import { done } from '../../codecs/tds/write.js';
import {
  CodedError,
  type Exchange,
  type GreetContext,
  type LoginContext,
  type Secret,
} from '../../core/contract/index.js';
import { ExchangeStepper, type Step } from '../../core/recovery/exchange.js';
import { randomness } from '../kit/random.js';
import { captured, messagesOf, streamOf, tdsCaptures } from '../kit/tds-captures.js';
import { clientPayloads, serverTokens } from '../kit/tds-fixtures.js';
import { cut, FUZZ_BYTES, mutate, survives } from '../kit/tds-fuzz.js';

const BYTES = FUZZ_BYTES / 4;
const MAX_FRAME = 64 * 1024;
const random = randomness();
const chosen = tdsCaptures.map(captured);
const raw = (from: 'client' | 'server', many: number) =>
  chosen
    .map((chunks) =>
      Buffer.concat(
        messagesOf(streamOf(chunks, from), from)
          .slice(0, many)
          .map((one) => one.raw),
      ),
    )
    .filter(({ length }) => length > 0);

/** PRELOGIN and LOGIN7, as clients send them one after the other. */
const CLIENTS = [
  ...raw('client', 2),
  Buffer.concat([packets(PRELOGIN, clientPayloads.prelogin, 4096), packets(LOGIN7, clientPayloads.login, 4096)]),
];
/** What servers answer to these. */
const PRELOGIN_ANSWER = packets(TABULAR_RESULT, Buffer.from('00000b00060100110001ff10000000000002', 'hex'), 4096);
const ANSWERED = serverTokens().map((token) => Buffer.concat([PRELOGIN_ANSWER, packets(TABULAR_RESULT, token, 4096)]));
const SERVERS = [
  ...raw('server', 2),
  ...ANSWERED,
  // The first one lets in: without captures few others come to an end.
  ...ANSWERED.map(() => ANSWERED[0]),
];
/** Answers to questions, one after the other. */
const ANSWERS = [
  ...raw('server', 40).map((all) => all.subarray(48)),
  ...SERVERS,
  packets(TABULAR_RESULT, done({}, TDS_7_4), 512),
];

/** Of clients that were met. */
/** As a login of theirs makes it. */
const BACKEND = JSON.stringify([57, 1, 'host', "O'Neill"]);
const STARTUPS: LoginContext['startup'][] = [];

/** Runs a dialogue with these bytes of its peer; coded errors are what it may end with. Gives the result, if there is one. */
function talk<R>(exchange: Exchange<R>, peer: 'client' | 'server', said: Uint8Array): R | null {
  const stepper = new ExchangeStepper(exchange, { frameLength: tds.frameLength, peer, maxFrame: MAX_FRAME });
  const parts = cut(said, random);
  let step: Step<R> = stepper.start();
  for (let steps = 0; step.state === 'bytes' || step.state === 'want'; steps++) {
    if (steps > said.length + 1000) throw new Error('the dialogue does not come to an end');
    if (step.state === 'want') {
      if (step.want.want === 'tls') step = stepper.reply({ endPoint: null, alpn: null });
      else if (step.want.want === 'random') step = stepper.reply(random.bytes(step.want.count));
      else step = stepper.reply(null as Secret | null);
      continue;
    }
    const part = parts.next();
    if (part.done === true) return null;
    step = stepper.push(Uint8Array.from(part.value));
  }
  if (step.state === 'failed') throw step.error;
  return step.result;
}

/** Runs it on mutated bytes until enough were read. */
function fuzz(pool: readonly Uint8Array[], run: (bytes: Uint8Array) => void): void {
  console.log(`${random.where} OUTLIVE_FUZZ_BYTES=${FUZZ_BYTES}`);
  let read = 0;
  for (let turn = 0; read < BYTES; turn++) {
    const whole = random.one(pool);
    const bytes = random.below(8) === 0 ? whole : mutate(whole.subarray(0, 20_000), random);
    read += bytes.length;
    survives(`${random.where}, turn ${turn}`, () => {
      try {
        run(bytes);
      } catch (error) {
        // Of any code; survives() is stricter with the protocol's own.
        if (!(error instanceof CodedError) || error.code === 'OUTLIVE_PROTOCOL_VIOLATION') throw error;
      }
    });
  }
}

describe('dialogues with mutated bytes', { timeout: 3_600_000 }, () => {
  it(`meet clients (${random.where})`, () => {
    let met = 0;
    fuzz(CLIENTS, (bytes) => {
      const context: GreetContext = {
        auth: 'trust',
        tls: random.one(['off', 'allow', 'require']),
        alreadyTls: random.below(8) === 0 ? { endPoint: null, alpn: 'tds/8.0' } : null,
      };
      const greeting = talk(tds.greet(context), 'client', bytes);
      if (greeting?.kind !== 'session') return;
      met++;
      if (STARTUPS.length < 50) STARTUPS.push(greeting.startup);
    });
    expect(met).toBeGreaterThan(0);
  });

  it(`log in (${random.where})`, () => {
    let ended = 0;
    fuzz(SERVERS, (bytes) => {
      const identity = { user: 'sa', database: 'app', secret: null };
      const startup = random.below(3) === 0 ? null : (random.one(STARTUPS) ?? null);
      const outcome = talk(tds.login({ identity, startup, tls: random.one(['off', 'prefer']) }), 'server', bytes);
      if (outcome !== null) ended++;
    });
    expect(ended).toBeGreaterThan(0);
  });

  it(`ask (${random.where})`, () => {
    fuzz(ANSWERS, (bytes) => {
      const asked = [
        () => tds.probe!(),
        () => tds.learn!(),
        () => tds.terminate!(BACKEND),
        () => tds.activity!(BACKEND),
      ];
      talk<unknown>(random.one(asked)(), 'server', bytes);
    });
  });
});
