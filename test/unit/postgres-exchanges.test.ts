import { createHash, pbkdf2Sync } from 'node:crypto';
import { existsSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { md5Verifier } from '../../codecs/postgres/auth/md5.js';
import { saslprep } from '../../codecs/postgres/auth/saslprep.js';
import { deriveKeys, formatVerifier } from '../../codecs/postgres/auth/scram.js';
import { cancel, terminate } from '../../codecs/postgres/cancel.js';
import {
  buildError,
  buildGatewayError,
  buildNotice,
  GATEWAY_SQLSTATES,
  isTransient,
  meaningOf,
  parseError,
} from '../../codecs/postgres/errors.js';
import { AUTHENTICATION_OK, greet, type Startup } from '../../codecs/postgres/greet.js';
import { type LoginFacts, login } from '../../codecs/postgres/login.js';
import { lookup } from '../../codecs/postgres/lookup.js';
import {
  authentication,
  authenticationSasl,
  frame,
  frameLength,
  startupMessage,
} from '../../codecs/postgres/messages.js';
import { resolve } from '../../codecs/postgres/outcome.js';
import { type PostgresHistory, probe } from '../../codecs/postgres/probe.js';
import type {
  Exchange,
  GatewayError,
  GreetContext,
  Greeting,
  LoginContext,
  LoginOutcome,
  Secret,
  ServerFacts,
  TlsFacts,
  Want,
} from '../../core/contract/index.js';
import { ExchangeStepper, type Step } from '../../core/recovery/exchange.js';

// -------------------------------------------------------------------------------------------------------------- harness

const ascii = (text: string) => Buffer.from(text, 'latin1');
const int32 = (value: number) => {
  const buffer = Buffer.alloc(4);
  buffer.writeUInt32BE(value >>> 0);
  return buffer;
};
const cstring = (text: string) => Buffer.from(text + '\0', 'utf8');
const packet = (...parts: Uint8Array[]) => {
  const body = Buffer.concat(parts);
  return Buffer.concat([int32(body.length + 4), body]);
};
const letters = (bytes: Uint8Array) => {
  let found = '';
  for (let at = 0; at < bytes.length; at += frameLength(bytes, at, bytes.length))
    found += String.fromCharCode(bytes[at]);
  return found;
};

interface Outside {
  readonly secrets?: Readonly<Record<string, Secret>>;
  readonly tls?: TlsFacts;
}

/** One end of a connection: an exchange, the bytes it has sent, and an outside world that always says the same. */
class End<R> {
  readonly #stepper: ExchangeStepper<R>;
  readonly #outside: Outside;
  readonly wants: Want['want'][] = [];
  sent: Uint8Array = new Uint8Array(0);
  step: Step<R> | null = null;
  #drawn = 0;

  constructor(exchange: Exchange<R>, peer: 'client' | 'server', outside: Outside = {}) {
    this.#stepper = new ExchangeStepper(exchange, { frameLength, peer });
    this.#outside = outside;
  }

  /** Goes on (with input) as far as it can; what it sends is returned and kept. */
  run(input: Uint8Array | null): Uint8Array {
    let step = input === null ? this.#stepper.start() : this.#stepper.push(input);
    const out = [...step.send];
    while (step.state === 'want') {
      const { want } = step;
      this.wants.push(want.want);
      switch (want.want) {
        case 'random':
          step = this.#stepper.reply(
            createHash('sha512')
              .update(`random ${this.#drawn++}`)
              .digest()
              .subarray(0, want.count),
          );
          break;
        case 'pbkdf2':
          step = this.#stepper.reply(pbkdf2Sync(want.password, want.salt, want.iterations, 32, 'sha256'));
          break;
        case 'credentials':
          step = this.#stepper.reply(this.#outside.secrets?.[want.user] ?? null);
          break;
        case 'tls':
          step = this.#stepper.reply(this.#outside.tls ?? { endPoint: null, alpn: want.alpn ?? null });
          break;
      }
      out.push(...step.send);
    }
    this.step = step;
    const sent = Buffer.concat(out);
    this.sent = Buffer.concat([this.sent, sent]);
    return sent;
  }

  get over(): boolean {
    return this.step?.state === 'done' || this.step?.state === 'failed';
  }

  get result(): R {
    if (this.step?.state === 'failed') throw this.step.error;
    if (this.step?.state !== 'done') throw new Error('the exchange waits for more');
    return this.step.result;
  }
}

/** How a stream may be cut: whole, or byte by byte. */
const CUTS = [
  ['whole', Number.POSITIVE_INFINITY],
  ['byte by byte', 1],
] as const;

function* cut(bytes: Uint8Array, size: number): Generator<Uint8Array> {
  for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, Math.min(at + size, bytes.length));
}

/** Lets `end` read `input`; stops early when it is over. */
function feed<R>(end: End<R>, input: Uint8Array, size: number = Number.POSITIVE_INFINITY): End<R> {
  if (end.step === null) end.run(null);
  for (const chunk of cut(input, size)) {
    if (end.over) break;
    end.run(chunk);
  }
  return end;
}

const meet = (context: Partial<GreetContext>, outside: Outside, input: Uint8Array, size?: number): End<Greeting> =>
  feed(new End(greet({ auth: 'trust', tls: 'off', alreadyTls: null, ...context }), 'client', outside), input, size);

/** What a session's `welcome` sends: here as the server does. */
const WELCOME = Buffer.concat([
  AUTHENTICATION_OK,
  frame('S', cstring('server_version'), cstring('18.4')),
  frame('N', cstring('SNOTICE'), cstring('VNOTICE'), cstring('C00000'), cstring('Mhello'), Buffer.of(0)),
  frame('S', cstring('TimeZone'), cstring('UTC')),
  frame('K', int32(4711), int32(0x01020304)),
  frame('Z', ascii('I')),
]);

/** Joins a login and a greeting; the greeting's end is followed by WELCOME. */
function join(
  toServer: Partial<LoginContext> & Pick<LoginContext, 'identity'>,
  toClient: Partial<GreetContext>,
  { secrets, tls, size = Number.POSITIVE_INFINITY }: Outside & { size?: number } = {},
): { client: End<LoginOutcome>; server: End<Greeting> } {
  const client = new End(login({ startup: null, tls: 'off', ...toServer }), 'server', { tls });
  const server = new End(greet({ auth: 'trust', tls: 'off', alreadyTls: null, ...toClient }), 'client', {
    secrets,
    tls,
  });
  let toRead: Uint8Array = server.run(null);
  let toAnswer: Uint8Array = client.run(null);
  let welcomed = false;
  while (toRead.length > 0 || toAnswer.length > 0) {
    const answers: Uint8Array[] = [];
    for (const chunk of cut(toAnswer, size)) if (!server.over) answers.push(server.run(chunk));
    if (server.over && !welcomed && server.step?.state === 'done' && server.step.result.kind === 'session') {
      welcomed = true;
      answers.push(WELCOME);
    }
    toRead = Buffer.concat([toRead, ...answers]);
    const more: Uint8Array[] = [];
    for (const chunk of cut(toRead, size)) if (!client.over) more.push(client.run(chunk));
    toAnswer = Buffer.concat(more);
    toRead = new Uint8Array(0);
  }
  return { client, server };
}

const SALT = Buffer.from('0123456789abcdef', 'latin1');
const keysOf = (password: string) => deriveKeys(pbkdf2Sync(saslprep(password), SALT, 4096, 32, 'sha256'));
const scramVerifier = (password: string) => formatVerifier({ iterations: 4096, salt: SALT, ...keysOf(password) });

// --------------------------------------------------------------------------------------------------------------- errors

describe('errors', () => {
  it.each([
    ['ERROR', '22012', 'ordinary'],
    ['ERROR', '25006', 'read-only'],
    ['ERROR', '40001', 'retry'],
    ['ERROR', '40P01', 'retry'],
    ['ERROR', '57014', 'ordinary'],
    ['ERROR', '57P01', 'ordinary'],
    ['ERROR', '08006', 'ordinary'],
    ['FATAL', '57P01', 'terminated'],
    ['FATAL', '57P02', 'server-lost'],
    ['FATAL', '57P03', 'server-lost'],
    ['FATAL', '57P04', 'intent'],
    ['FATAL', '57P05', 'intent'],
    ['FATAL', '25P03', 'intent'],
    ['FATAL', '25P04', 'intent'],
    ['FATAL', '40001', 'server-lost'],
    ['FATAL', '53200', 'terminated'],
    ['FATAL', '08P01', 'ordinary'],
    ['FATAL', '28P01', 'ordinary'],
    ['FATAL', '3D000', 'ordinary'],
    ['PANIC', 'XX000', 'server-lost'],
  ])('%s %s means %s', (severity, code, meaning) => {
    expect(meaningOf(severity, code)).toBe(meaning);
  });

  it('tells what may pass', () => {
    expect(['57P03', '57P01', '53300', '08006'].filter(isTransient)).toHaveLength(4);
    expect(['28P01', '3D000', '08P01', '42501'].filter(isTransient)).toHaveLength(0);
  });

  it('builds what it parses', () => {
    const bytes = buildError({ severity: 'FATAL', code: '57P01', message: 'stöp', detail: 'd', hint: 'h' });
    const shifted = Buffer.concat([Buffer.of(1, 2, 3), bytes, Buffer.of(9)]);
    expect(parseError(shifted, 3, 3 + bytes.length)).toEqual({
      meaning: 'terminated',
      code: '57P01',
      message: 'stöp',
      fatal: true,
      fields: { S: 'FATAL', V: 'FATAL', C: '57P01', M: 'stöp', D: 'd', H: 'h' },
    });
    expect(letters(buildNotice('still here'))).toBe('N');
  });

  it('does not let a NUL byte break the message', () => {
    const bytes = buildError({ severity: 'ERROR', code: '22021', message: 'a\0b' });
    expect(parseError(bytes, 0, bytes.length).message).toBe('a');
  });

  it.each(['S', 'SERROR', 'SERROR\0', 'SERROR\0\0more'])('does not read fields that end wrongly: %j', (body) => {
    const bytes = frame('E', ascii(body));
    expect(() => parseError(bytes, 0, bytes.length)).toThrow(/do not end/);
  });

  it.each(Object.entries(GATEWAY_SQLSTATES))('puts %s into SQLSTATE %s', (kind, code) => {
    const error = { code: 'OUTLIVE_X', kind, message: 'm' } as GatewayError;
    const bytes = buildGatewayError(error, 'ERROR');
    expect(parseError(bytes, 0, bytes.length)).toMatchObject({
      code,
      message: 'm',
      fatal: false,
      fields: { D: 'OUTLIVE_X' },
    });
  });
});

// ---------------------------------------------------------------------------------------------------------------- greet

const V3 = (...params: string[]) => packet(int32(0x30000), ...params.map(cstring), Buffer.of(0));
const SSL = packet(int32(80877103));
const GSS = packet(int32(80877104));

describe.each(CUTS)('greet, %s', (_name, size) => {
  it('meets a client that is trusted', () => {
    const end = meet({}, {}, V3('user', 'u', 'options', '-c x=y', 'application_name', 'äpp'), size);
    expect(end.result).toEqual({
      kind: 'session',
      identity: { user: 'u', database: 'u', secret: null },
      startup: {
        protocol: { major: 3, minor: 0 },
        params: [
          ['user', 'u'],
          ['options', '-c x=y'],
          ['application_name', 'äpp'],
        ],
      },
      passThrough: null,
      tls: false,
    });
    expect(end.sent).toHaveLength(0);
  });

  it('hands over what is known of a trusted user', () => {
    const secrets = { u: { password: 'p' } };
    expect(meet({}, { secrets }, V3('user', 'u', 'database', 'd'), size).result).toMatchObject({
      identity: { user: 'u', database: 'd', secret: { password: 'p' } },
    });
  });

  it('leaves what the client sends behind the start alone', () => {
    const end = meet({}, {}, Buffer.concat([V3('user', 'u'), ascii('X')]), Number.POSITIVE_INFINITY);
    expect(end.step).toMatchObject({ state: 'done', rest: ascii('X') });
  });

  it('answers N to encryption that it does not have', () => {
    const end = meet({}, {}, Buffer.concat([GSS, SSL, V3('user', 'u')]), size);
    expect(Buffer.from(end.sent).toString('latin1')).toBe('NN');
    expect(end.result).toMatchObject({ kind: 'session', tls: false });
  });

  it('starts TLS', () => {
    const end = new End(greet({ auth: 'trust', tls: 'require', alreadyTls: null }), 'client');
    feed(end, SSL, size);
    expect(Buffer.from(end.sent).toString('latin1')).toBe('S');
    feed(end, V3('user', 'u'), size);
    expect(end.result).toMatchObject({ kind: 'session', tls: true });
  });

  it('takes direct TLS and answers N to more of it', () => {
    const end = meet(
      { tls: 'require', alreadyTls: { endPoint: null, alpn: 'postgresql' } },
      {},
      Buffer.concat([SSL, V3('user', 'u')]),
      size,
    );
    expect(Buffer.from(end.sent).toString('latin1')).toBe('N');
    expect(end.result).toMatchObject({ kind: 'session', tls: true });
  });

  it('passes cancel requests on, with keys of any length', () => {
    const short = Uint8Array.of(0, 0, 0, 77, 0, 0, 0, 99);
    expect(meet({ tls: 'require' }, {}, packet(int32(80877102), short), size).result).toEqual({
      kind: 'cancel',
      key: short,
    });
    const long = Uint8Array.of(0, 0, 0, 77, ...Buffer.alloc(256, 5));
    expect(meet({}, {}, packet(int32(80877102), long), size).result).toEqual({ kind: 'cancel', key: long });
  });

  it.each([
    [3, 0, 0, ''],
    [3, 1, 1, ''],
    [3, 2, 2, ''],
    [3, 3, 2, 'v'],
    [3, 9999, 2, 'v'],
  ])('speaks 3.x when asked for %i.%i', (major, minor, spoken, sent) => {
    const end = meet({}, {}, startupMessage({ major, minor }, [['user', 'u']]), size);
    expect(end.result).toMatchObject({ startup: { protocol: { major: 3, minor: spoken } } });
    expect(letters(end.sent)).toBe(sent);
  });

  it('names the protocol options that it does not know, and keeps them back', () => {
    const end = meet({}, {}, V3('user', 'u', '_pq_.grease', '1'), size);
    expect(end.sent).toEqual(frame('v', int32(0x30000), int32(1), cstring('_pq_.grease')));
    expect((end.result as { startup: Startup }).startup.params).toEqual([['user', 'u']]);
  });

  it.each([
    ['true', 'replication connection'],
    ['database', 'replication connection'],
    ['ON', 'replication connection'],
    ['yes', 'replication connection'],
    ['1', 'replication connection'],
    ['off', null],
    ['0', null],
    ['f', null],
  ])('replication=%s', (value, passThrough) => {
    expect(meet({}, {}, V3('user', 'u', 'replication', value), size).result).toMatchObject({ passThrough });
  });

  it.each([
    ['a second request for TLS', Buffer.concat([SSL, SSL]), '0A000', /protocol 1234.5679: server supports 3.0 to 3.2/],
    ['a second request for GSS', Buffer.concat([GSS, GSS]), '0A000', /protocol 1234.5680/],
    ['protocol 2', packet(int32(0x20000), Buffer.alloc(284)), '0A000', /protocol 2.0: server supports 3.0 to 3.2/],
    ['protocol 4', packet(int32(0x40001), Buffer.of(0)), '0A000', /protocol 4.1/],
    ['no user', V3('database', 'd'), '28000', /no PostgreSQL user name/],
    ['an empty user', V3('user', ''), '28000', /no PostgreSQL user name/],
    ['no terminator', packet(int32(0x30000), cstring('user'), cstring('u')), '08P01', /layout/],
    ['no value', packet(int32(0x30000), cstring('user'), ascii('u')), '08P01', /layout/],
    ['bytes behind the terminator', packet(int32(0x30000), Buffer.of(0, 0)), '08P01', /layout/],
    ['nothing but a version', packet(int32(0x30000)), '08P01', /layout/],
    ['a name that is no UTF-8', packet(int32(0x30000), cstring('user'), Buffer.of(0xe4, 0, 0)), '22021', /UTF8/],
    ['an unknown kind of replication', V3('user', 'u', 'replication', 'maybe'), '22023', /"replication": "maybe"/],
    ['half a boolean', V3('user', 'u', 'replication', 'o'), '22023', /"replication": "o"/],
  ])('refuses %s', (_what, input, code, message) => {
    const end = meet({}, {}, input, size);
    const { result } = end;
    expect(result).toMatchObject({ kind: 'closed', error: { code, fatal: true } });
    const answer = Buffer.from(end.sent).subarray(Buffer.from(end.sent).indexOf('E'));
    expect(parseError(answer, 0, answer.length).message).toMatch(message);
  });

  it.each([
    ['length 0', int32(0)],
    ['length 3', int32(3)],
    ['length 7', Buffer.concat([int32(7), Buffer.alloc(3)])],
    ['length 2^31', int32(2 ** 31)],
    ['length 2^32-1', int32(2 ** 32 - 1)],
    ['one byte too long', int32(10_005)],
    ['another protocol', ascii('GET / HTTP/1.1\r\n')],
    ['a cancel request without a key', packet(int32(80877102), int32(1))],
    ['a cancel request with a key too long', packet(int32(80877102), int32(1), Buffer.alloc(257))],
  ])('closes without a word: %s', (_what, input) => {
    const end = meet({}, {}, input, size);
    expect(end.result).toMatchObject({ kind: 'closed', error: { code: '08P01' } });
    expect(end.sent).toHaveLength(0);
  });

  it('accepts the longest start', () => {
    const value = 'x'.repeat(10_000 - 4 - 'user\0u\0options\0\0\0'.length);
    expect(meet({}, {}, V3('user', 'u', 'options', value), size).result).toMatchObject({ kind: 'session' });
  });

  it('demands encryption', () => {
    const end = meet({ tls: 'require' }, {}, V3('user', 'u'), size);
    expect(end.result).toMatchObject({ kind: 'closed', error: { code: '28000' } });
    expect(parseError(end.sent, 0, end.sent.length).message).toMatch(/no encryption$/);
  });

  it.each([
    ['password', 3, 'password'],
    ['md5', 5, 'password'],
    ['scram-sha-256', 10, 'SASL'],
  ])('refuses what is no answer to %s', (auth, code, what) => {
    const start = V3('user', 'u');
    const end = meet({ auth }, {}, Buffer.concat([start, frame('Q', cstring('select 1'))]), size);
    expect(end.result).toMatchObject({ kind: 'closed', error: { code: '08P01' } });
    expect(letters(end.sent)).toBe('RE');
    expect(Buffer.from(end.sent).readInt32BE(5)).toBe(code);
    expect(end.step).toMatchObject({
      result: { error: { message: `expected ${what} response, got message type 81` } },
    });
    for (const length of [0, 3, 70_000, 2 ** 31]) {
      const silent = meet({ auth }, {}, Buffer.concat([start, ascii('p'), int32(length)]), size);
      expect(silent.result).toMatchObject({ kind: 'closed', error: { message: 'invalid message length' } });
      expect(letters(silent.sent)).toBe('R');
    }
  });

  it.each([
    ['an empty password', Buffer.of(0), '28P01', 'empty password returned by client'],
    ['no terminator', ascii('secret'), '08P01', 'invalid password packet size'],
    ['two texts', Buffer.of(0x61, 0, 0x62, 0), '08P01', 'invalid password packet size'],
    ['nothing', Buffer.alloc(0), '08P01', 'invalid password packet size'],
    ['no UTF-8', Buffer.of(0xe4, 0), '28P01', 'password authentication failed for user "u"'],
  ])('refuses %s', (_what, body, code, message) => {
    const secrets = { u: { password: 'secret' } };
    const input = Buffer.concat([V3('user', 'u'), frame('p', body)]);
    expect(meet({ auth: 'password' }, { secrets }, input, size).result).toMatchObject({ error: { code, message } });
  });

  it.each([
    [
      'an unknown mechanism',
      Buffer.concat([cstring('PLAIN'), int32(1), ascii('x')]),
      /invalid SASL authentication mechanism/,
    ],
    ['-PLUS without TLS', Buffer.concat([cstring('SCRAM-SHA-256-PLUS'), int32(1), ascii('x')]), /invalid SASL/],
    ['a length beyond the message', Buffer.concat([cstring('SCRAM-SHA-256'), int32(9), ascii('x')]), /too short/],
    [
      'bytes behind the message',
      Buffer.concat([cstring('SCRAM-SHA-256'), int32(1), ascii('xy')]),
      /invalid message format/,
    ],
    ['an empty message', Buffer.concat([cstring('SCRAM-SHA-256'), int32(0)]), /malformed SCRAM message/],
    ['no mechanism', Buffer.alloc(0), /does not end/],
  ])('refuses SASL with %s', (_what, body, message) => {
    const input = Buffer.concat([V3('user', 'u'), frame('p', body)]);
    const { result } = meet({ auth: 'scram-sha-256' }, {}, input, size);
    expect(result).toMatchObject({ kind: 'closed', error: { code: '08P01', message: expect.stringMatching(message) } });
  });

  it('waits for a client that sends its first message late', () => {
    const input = Buffer.concat([
      V3('user', 'u'),
      frame('p', cstring('SCRAM-SHA-256'), int32(-1)),
      frame('p', ascii('n,,n=,r=abc')),
    ]);
    const end = meet({ auth: 'scram-sha-256' }, {}, input, size);
    expect(letters(end.sent)).toBe('RRR');
    expect(end.over).toBe(false);
  });
});

describe('greet', () => {
  it('gives up on bytes in front of the TLS handshake, and garbles no handshake with an answer', () => {
    const end = meet({ tls: 'allow' }, {}, Buffer.concat([SSL, V3('user', 'mallory')]));
    expect(end.result).toMatchObject({
      kind: 'closed',
      error: { message: 'received unencrypted data after SSL request' },
    });
    expect(Buffer.from(end.sent).toString('latin1')).toBe('S');
  });

  it('closes direct TLS without the protocol name', () => {
    const end = meet({ tls: 'allow', alreadyTls: { endPoint: null, alpn: null } }, {}, V3('user', 'u'));
    expect(end.result).toMatchObject({ kind: 'closed', error: { code: '08P01' } });
    expect(end.sent).toHaveLength(0);
  });

  it('does not tell by the dialogue whether a user exists', () => {
    const secrets = {
      plain: { password: 'a' },
      stored: { verifier: scramVerifier('a') },
      old: { verifier: md5Verifier('old', 'a') },
    };
    const shape = (user: string) => {
      const hello = frame('p', cstring('SCRAM-SHA-256'), int32(11), ascii('n,,n=,r=abc'));
      const end = meet({ auth: 'scram-sha-256' }, { secrets }, Buffer.concat([V3('user', user), hello]));
      const challenge = Buffer.from(end.sent)
        .subarray(frameLength(end.sent, 0, end.sent.length) + 9)
        .toString();
      const [nonce, salt, iterations] = challenge.split(',');
      feed(end, frame('p', ascii(`c=biws,${nonce},p=${Buffer.alloc(32).toString('base64')}`)));
      expect(end.result).toMatchObject({
        error: { code: '28P01', message: `password authentication failed for user "${user}"` },
      });
      return { wants: end.wants, sent: letters(end.sent), length: salt.length, iterations, salt };
    };
    const { salt, ...nobody } = shape('nobody');
    expect(shape('nobody').salt).toBe(salt);
    for (const user of ['plain', 'stored', 'old']) {
      const { salt: other, ...rest } = shape(user);
      expect(rest).toEqual(nobody);
      expect(shape(user).salt).toBe(other);
    }
  });

  it('does the same work for every failed password', () => {
    const secrets = {
      plain: { password: 'a' },
      stored: { verifier: scramVerifier('a') },
      old: { verifier: md5Verifier('old', 'a') },
    };
    for (const user of ['nobody', 'plain', 'stored', 'old']) {
      const input = Buffer.concat([V3('user', user), frame('p', cstring('wrong'))]);
      const end = meet({ auth: 'password' }, { secrets }, input);
      expect(end.result).toMatchObject({ error: { code: '28P01' } });
      expect(end.wants).toEqual(['credentials', 'pbkdf2']);
    }
  });
});

// ------------------------------------------------------------------------------------------------------- login and greet

describe.each(CUTS)('login against greet, %s', (_name, size) => {
  const md5 = md5Verifier('u', 'sécret');
  const scram = scramVerifier('sécret');
  const { clientKey } = keysOf('sécret');
  const identity = (secret: Secret | null) => ({ user: 'u', database: 'd', secret });
  const FACTS: LoginFacts = {
    protocol: { major: 3, minor: 0 },
    parameters: [
      ['server_version', '18.4'],
      ['TimeZone', 'UTC'],
    ],
    notices: [frame('N', ascii('SNOTICE\0VNOTICE\0C00000\0Mhello\0\0')).toString()],
  };

  it.each<[string, string, Secret | null, Secret | null, Secret | null]>([
    ['trust', 'trust', null, null, null],
    ['a password against itself', 'password', { password: 'sécret' }, { password: 'sécret' }, { password: 'sécret' }],
    ['a password against md5', 'password', { password: 'sécret' }, { verifier: md5 }, { password: 'sécret' }],
    ['a password against SCRAM', 'password', { password: 'sécret' }, { verifier: scram }, { password: 'sécret' }],
    ['md5, password against itself', 'md5', { password: 'sécret' }, { password: 'sécret' }, { password: 'sécret' }],
    ['md5, password against verifier', 'md5', { password: 'sécret' }, { verifier: md5 }, { verifier: md5 }],
    ['md5, verifier against verifier', 'md5', { verifier: md5 }, { verifier: md5 }, { verifier: md5 }],
    ['md5 with a SCRAM verifier', 'md5', { password: 'sécret' }, { verifier: scram }, { verifier: scram, clientKey }],
    [
      'SCRAM, password against itself',
      'scram-sha-256',
      { password: 'sécret' },
      { password: 'sécret' },
      { password: 'sécret' },
    ],
    [
      'SCRAM, password against verifier',
      'scram-sha-256',
      { password: 'sécret' },
      { verifier: scram },
      { verifier: scram, clientKey },
    ],
    [
      'SCRAM, key against verifier',
      'scram-sha-256',
      { verifier: scram, clientKey },
      { verifier: scram },
      { verifier: scram, clientKey },
    ],
  ])('%s', (_what, auth, has, stored, learnt) => {
    const secrets: Record<string, Secret> = stored === null ? {} : { u: stored };
    for (const tls of ['off', 'require'] as const) {
      const { client, server } = join(
        { identity: identity(has), tls },
        { auth, tls: tls === 'off' ? 'off' : 'allow' },
        { secrets, size, tls: { endPoint: Buffer.alloc(32, 3), alpn: 'postgresql' } },
      );
      expect(server.result).toMatchObject({
        kind: 'session',
        tls: tls !== 'off',
        identity: { user: 'u', database: 'd' },
      });
      const { secret } = (server.result as Extract<Greeting, { kind: 'session' }>).identity;
      if (secret?.clientKey !== undefined) {
        expect({ ...secret, clientKey: Buffer.from(secret.clientKey) }).toEqual({ ...learnt, clientKey });
      } else {
        expect(secret).toEqual(learnt);
      }
      expect(client.result).toEqual({
        ok: true,
        login: {
          cancelKey: { pid: 4711, secret: int32(0x01020304).toString('base64') },
          backendId: '4711',
          facts: { ...FACTS, notices: [expect.any(String)] },
        },
      });
    }
  });

  it.each([
    ['password', { password: 'wrong' }],
    ['md5', { password: 'wrong' }],
    ['scram-sha-256', { password: 'wrong' }],
  ])('refuses a wrong secret with %s', (auth, has) => {
    const stored: Record<string, Secret>[] = [
      {},
      { u: { password: 'sécret' } },
      { u: { verifier: scram } },
      { u: { verifier: md5 } },
    ];
    for (const secrets of stored) {
      const { client, server } = join({ identity: identity(has) }, { auth }, { secrets, size });
      expect(server.result).toMatchObject({ kind: 'closed', error: { code: '28P01' } });
      const { result } = client;
      expect(result).toMatchObject({
        ok: false,
        transient: false,
        error: { code: '28P01', message: 'password authentication failed for user "u"' },
      });
      expect(letters((result as { bytes: Uint8Array }).bytes)).toBe('E');
    }
  });

  it('uses what a client has proven to log in elsewhere', () => {
    const secrets = { u: { verifier: scram } };
    const first = join({ identity: identity({ password: 'sécret' }) }, { auth: 'scram-sha-256' }, { secrets, size });
    const proven = (first.server.result as Extract<Greeting, { kind: 'session' }>).identity;
    expect(proven.secret?.password).toBeUndefined();
    const second = join({ identity: proven }, { auth: 'scram-sha-256' }, { secrets, size });
    expect(second.client.result).toMatchObject({ ok: true });
    expect(second.client.wants).not.toContain('pbkdf2');
  });

  it('binds the channel to the certificate that it sees', () => {
    const client = new End(
      login({ identity: identity({ password: 'sécret' }), startup: null, tls: 'require' }),
      'server',
      {
        tls: { endPoint: Buffer.alloc(32, 1), alpn: null },
      },
    );
    const server = new End(greet({ auth: 'scram-sha-256', tls: 'allow', alreadyTls: null }), 'client', {
      tls: { endPoint: Buffer.alloc(32, 2), alpn: null },
      secrets: { u: { verifier: scram } },
    });
    let fromServer: Uint8Array = server.run(null);
    for (let fromClient = client.run(null); fromClient.length > 0 && !server.over; ) {
      fromServer = server.run(fromClient);
      fromClient = fromServer.length > 0 && !client.over ? client.run(fromServer) : new Uint8Array(0);
    }
    expect(server.result).toMatchObject({ error: { code: '28000', message: 'SCRAM channel binding check failed' } });
  });

  it('sends the parameters of the client', () => {
    const startup: Startup = {
      protocol: { major: 3, minor: 2 },
      params: [
        ['user', 'u'],
        ['application_name', 'app'],
        ['database', 'other'],
        ['options', '-c a=b'],
      ],
    };
    const { server, client } = join({ identity: identity(null), startup }, {}, { size });
    expect(server.result).toMatchObject({
      startup: {
        protocol: { major: 3, minor: 2 },
        params: [
          ['user', 'u'],
          ['database', 'd'],
          ['application_name', 'app'],
          ['options', '-c a=b'],
        ],
      },
    });
    expect(client.result).toMatchObject({ ok: true, login: { facts: { protocol: { major: 3, minor: 2 } } } });
  });
});

// ---------------------------------------------------------------------------------------------------------------- login

describe.each(CUTS)('login, %s', (_name, size) => {
  const scram = scramVerifier('secret');
  const { clientKey } = keysOf('secret');
  const enter = (context: Partial<LoginContext>, input: Uint8Array, secret: Secret | null = null): LoginOutcome =>
    feed(
      new End(
        login({ identity: { user: 'u', database: 'd', secret }, startup: null, tls: 'off', ...context }),
        'server',
      ),
      input,
      size,
    ).result;
  const startup: Startup = { protocol: { major: 3, minor: 2 }, params: [] };

  it('keeps a long cancel key, and takes an older protocol', () => {
    const key = Buffer.alloc(32, 9);
    const rest = Buffer.concat([AUTHENTICATION_OK, frame('K', int32(7), key), frame('Z', ascii('I'))]);
    expect(enter({ startup }, rest)).toMatchObject({
      login: { cancelKey: { pid: 7, secret: key.toString('base64') }, facts: { protocol: { minor: 2 } } },
    });
    for (const version of [0x30000, 0]) {
      const older = Buffer.concat([frame('v', int32(version), int32(0)), rest]);
      expect(enter({ startup }, older)).toMatchObject({ login: { facts: { protocol: { major: 3, minor: 0 } } } });
    }
  });

  it('needs no cancel key', () => {
    const input = Buffer.concat([AUTHENTICATION_OK, frame('Z', ascii('I'))]);
    expect(enter({}, input)).toMatchObject({ login: { cancelKey: null, backendId: '' } });
  });

  it.each([
    ['57P03', true],
    ['53300', true],
    ['3D000', false],
  ])('hands over a refusal with %s', (code, transient) => {
    const bytes = Uint8Array.from(buildError({ severity: 'FATAL', code, message: 'no' }));
    for (const input of [bytes, Buffer.concat([AUTHENTICATION_OK, bytes])]) {
      expect(enter({}, input)).toMatchObject({ ok: false, transient, error: { code }, bytes });
    }
    expect(enter({ tls: 'prefer' }, bytes)).toMatchObject({ ok: false, transient, error: { code } });
  });

  it('goes on without TLS only where it may', () => {
    const input = Buffer.concat([ascii('N'), AUTHENTICATION_OK, frame('Z', ascii('I'))]);
    expect(enter({ tls: 'prefer' }, input)).toMatchObject({ ok: true });
    expect(enter({ tls: 'require' }, input)).toMatchObject({ ok: false, transient: false, error: { code: '08001' } });
  });

  it.each<[string, Uint8Array, Secret | null, RegExp]>([
    ['password', authentication(3), { verifier: scram, clientKey }, /demands password .* has no password$/],
    ['md5', authentication(5, Buffer.alloc(4)), { verifier: scram, clientKey }, /demands md5 .* md5 verifier$/],
    [
      'SCRAM',
      authenticationSasl(['SCRAM-SHA-256']),
      { verifier: md5Verifier('u', 'secret') },
      /demands SCRAM-SHA-256 /,
    ],
    ['SCRAM without anything', authenticationSasl(['SCRAM-SHA-256']), null, /demands SCRAM-SHA-256 /],
    ['unknown SASL', authenticationSasl(['OAUTHBEARER']), { password: 'secret' }, /no SASL mechanism/],
    ['GSSAPI', authentication(7), { password: 'secret' }, /does not know \(code 7\)/],
  ])('says what is missing for %s', (_what, request, secret, message) => {
    const outcome = enter({}, request, secret);
    expect(outcome).toMatchObject({
      ok: false,
      transient: false,
      error: { code: '28000', message: expect.stringMatching(message) },
    });
    expect(Buffer.from((outcome as { bytes: Uint8Array }).bytes).toString()).not.toContain('secret');
  });

  it('notices that its verifier is not the one of the server', () => {
    const secrets = { u: { verifier: formatVerifier({ iterations: 5000, salt: SALT, ...keysOf('secret') }) } };
    const identity = { user: 'u', database: 'd', secret: { verifier: scram, clientKey } };
    expect(join({ identity }, { auth: 'scram-sha-256' }, { secrets, size }).client.result).toMatchObject({
      ok: false,
      error: {
        code: '28000',
        message: 'the verifier of user "u" on the server differs from the one that the gateway has',
      },
    });
  });

  it('does not believe a server that cannot prove itself', () => {
    const end = new End(
      login({ identity: { user: 'u', database: 'd', secret: { password: 'secret' } }, startup: null, tls: 'off' }),
      'server',
    );
    feed(end, authenticationSasl(['SCRAM-SHA-256']), size);
    const nonce = /r=([^,]+)$/.exec(Buffer.from(end.sent).toString('latin1'))![1];
    feed(end, authentication(11, ascii(`r=${nonce}XYZ,s=${SALT.toString('base64')},i=4096`)), size);
    const early = AUTHENTICATION_OK;
    const proof = authentication(12, ascii(`v=${Buffer.alloc(32).toString('base64')}`));
    expect(feed(end, proof, size).result).toMatchObject({ ok: false, error: { code: '28000' } });
    expect(() => enter({}, Buffer.concat([authenticationSasl(['SCRAM-SHA-256']), early]), { password: 'x' })).toThrow(
      /unexpected message during login/,
    );
  });

  it.each([
    ['ready without authentication', frame('Z', ascii('I'))],
    ['authentication twice', Buffer.concat([AUTHENTICATION_OK, AUTHENTICATION_OK])],
    ['rows', Buffer.concat([AUTHENTICATION_OK, frame('D', Buffer.of(0, 0))])],
    ['a parameter without a value', Buffer.concat([AUTHENTICATION_OK, frame('S', cstring('a'))])],
    ['another protocol', ascii('HTTP/1.1 400 Bad Request\r\n\r\n')],
  ])('throws at %s', (_what, input) => {
    expect(() => enter({}, input)).toThrow(expect.objectContaining({ code: 'OUTLIVE_PROTOCOL_VIOLATION' }));
  });

  it('throws at an unknown answer to the request for TLS', () => {
    expect(() => enter({ tls: 'prefer' }, ascii('HTTP'))).toThrow(/unknown byte/);
  });
});

// -------------------------------------------------------------------------------------------- exchanges over a live login

type Row = (string | null)[];
type Answer = Row[] | string;

const dataRow = (row: Row) =>
  frame(
    'D',
    Buffer.of(row.length >> 8, row.length & 255),
    ...row.flatMap((value) =>
      value === null ? [int32(-1)] : [int32(Buffer.byteLength(value)), Buffer.from(value, 'utf8')],
    ),
  );

/** Plays the server: `answer` gets each simple query and tells the rows, or an SQLSTATE (`!` in front: fatal). */
function ask<R>(exchange: Exchange<R>, answer: (sql: string) => Answer, size: number = Number.POSITIVE_INFINITY): R {
  const end = new End(exchange, 'server');
  let query = Buffer.from(end.run(null));
  while (!end.over) {
    const isSimple = query[0] === 0x51;
    const found = answer(isSimple ? query.toString('utf8', 5, query.length - 1) : query.toString('latin1'));
    const parts: Uint8Array[] = isSimple ? [frame('T', Buffer.alloc(2))] : [frame('1'), frame('2')];
    if (typeof found === 'string') {
      const fatal = found.startsWith('!');
      parts.push(buildError({ severity: fatal ? 'FATAL' : 'ERROR', code: found.replace('!', ''), message: 'm' }));
      if (!fatal) parts.push(frame('Z', ascii('I')));
    } else {
      parts.push(
        buildNotice('by the way'),
        ...found.map(dataRow),
        frame('C', cstring('SELECT')),
        frame('Z', ascii('I')),
      );
    }
    const before = end.sent.length;
    feed(end, Buffer.concat(parts), size);
    query = Buffer.from(end.sent.subarray(before));
    if (query.length === 0 && !end.over) throw new Error('the exchange waits for more');
  }
  return end.result;
}

interface FakeServer {
  readonly system?: string;
  readonly recovery?: boolean;
  readonly timeline?: number;
  readonly checkpointTimeline?: number;
  readonly instance?: string;
  readonly redo?: string;
  readonly checkpoint?: string;
  readonly nextXid?: string;
  readonly walLevel?: boolean;
  readonly mayRead?: boolean;
  readonly history?: string;
  readonly status?: string | null;
  readonly prepared?: boolean;
  /** An SQLSTATE for the status query. */
  readonly error?: string;
}

const serverAnswers =
  (fake: FakeServer) =>
  (sql: string): Answer => {
    if (sql.includes("pg_read_file('")) return fake.history === undefined ? '58P01' : [[fake.history]];
    if (sql.includes('pg_xact_status')) return fake.error ?? [[fake.status ?? null, fake.prepared ? 't' : 'f']];
    const timeline = fake.timeline ?? 1;
    return [
      [
        fake.recovery ? 't' : 'f',
        't',
        fake.system ?? '77',
        fake.recovery ? null : timeline.toString(16).padStart(8, '0'),
        String(timeline),
        String(fake.checkpointTimeline ?? timeline),
        fake.instance ?? '100.c100',
        '0/5000000',
        fake.recovery ? '128' : null,
        fake.nextXid ?? '900',
        fake.redo ?? '0/100',
        fake.checkpoint ?? '0/180',
        '1700000000.5',
        fake.walLevel === false ? 'f' : 't',
        fake.mayRead === false ? 'f' : 't',
      ],
    ];
  };

const factsOf = (fake: FakeServer): ServerFacts => ask(probe(), serverAnswers(fake));

describe.each(CUTS)('probe, %s', (_name, size) => {
  const look = (fake: FakeServer) => ask(probe(), serverAnswers(fake), size);

  it('knows a primary', () => {
    expect(look({ redo: '0/200', checkpoint: '0/200' })).toEqual({
      role: 'primary',
      writable: true,
      system: '77',
      timeline: 1,
      instance: '100.c100',
      position: 0x5000000n,
      lagBytes: null,
      history: {
        timelines: [],
        endOfRecoveryLsn: '0/200',
        nextXid: '900',
        redoLsn: '0/200',
        checkpointLsn: '0/200',
        checkpointTime: 1700000000.5,
      },
    });
  });

  it('knows a standby', () => {
    expect(look({ recovery: true, redo: '0/200', checkpoint: '0/200' })).toMatchObject({
      role: 'standby',
      writable: false,
      lagBytes: 128,
      history: { endOfRecoveryLsn: null },
    });
  });

  it('reads where the history left its earlier timelines', () => {
    const history = '1\t0/3000148\tno recovery target specified\n\n2\t1A/5000028\tbefore 2000-01-01\n';
    expect(look({ timeline: 3, history }).history).toMatchObject({
      timelines: [
        { timeline: 1, switchLsn: '0/3000148' },
        { timeline: 2, switchLsn: '1A/5000028' },
      ],
    });
    expect(look({ timeline: 26, history: '' }).timeline).toBe(26);
  });

  it('does without what it may not or cannot read', () => {
    expect(look({ timeline: 3, mayRead: false, history: 'x' }).history).toMatchObject({ timelines: null });
    expect(look({ timeline: 3 }).history).toMatchObject({ timelines: null });
  });

  it('tells where a life began only when it is certain', () => {
    const shutdown = { redo: '0/200', checkpoint: '0/200' };
    const end = (fake: FakeServer) => (look(fake).history as PostgresHistory).endOfRecoveryLsn;
    expect(end(shutdown)).toBe('0/200');
    expect(end({})).toBeNull();
    expect(end({ ...shutdown, walLevel: false })).toBeNull();
    expect(end({ ...shutdown, timeline: 2, checkpointTimeline: 1, history: '' })).toBeNull();
  });

  it('throws when the server does not answer', () => {
    expect(() => ask(probe(), () => '!57P01', size)).toThrow(/SQLSTATE 57P01/);
    expect(() => ask(probe(), () => '42501', size)).toThrow(/SQLSTATE 42501/);
    expect(() => ask(probe(), () => [], size)).toThrow(/did not answer/);
  });
});

describe('resolve', () => {
  const TOKEN = { token: { xid: '800', lsn: '0/2000' }, position: 0x2000n };
  const ORIGIN: FakeServer = { instance: '100.c100', timeline: 1 };
  const END_BEFORE = { redo: '0/1FF0', checkpoint: '0/1FF0' };
  const END_AT = { redo: '0/2000', checkpoint: '0/2000' };
  const END_AFTER = { redo: '0/2001', checkpoint: '0/2001' };
  const RESTARTED: FakeServer = { instance: '200.c200' };
  const PROMOTED: FakeServer = { instance: '300.c300', timeline: 2 };
  const future = { error: '22023' };

  const outcome = (server: FakeServer, first: FakeServer = server, origin: FakeServer = ORIGIN) =>
    ask(resolve(TOKEN, factsOf(origin), factsOf(first)), serverAnswers(server));

  it.each<[string, FakeServer, string]>([
    ['committed', { ...ORIGIN, status: 'committed' }, 'committed'],
    ['aborted', { ...ORIGIN, status: 'aborted' }, 'not-committed'],
    ['still running', { ...ORIGIN, status: 'in progress' }, 'wait'],
    ['prepared', { ...ORIGIN, status: 'in progress', prepared: true }, 'committed'],
    ['too old', { ...ORIGIN, status: null }, 'unknown'],
    ['not issued', { ...ORIGIN, ...future }, 'unknown'],
    ['promoted meanwhile', { ...ORIGIN, timeline: 2, history: '1\t0/1000\tx', status: 'committed' }, 'committed'],
  ])('in the same life: %s', (_what, server, expected) => {
    expect(outcome(server)).toBe(expected);
  });

  it.each<[string, FakeServer, string]>([
    ['committed, before the end', { ...END_AFTER, status: 'committed' }, 'committed'],
    ['committed, by an alias at the end', { ...END_AT, status: 'committed' }, 'not-committed'],
    ['committed, by an alias behind it', { ...END_BEFORE, status: 'committed' }, 'not-committed'],
    ['running, as an alias', { ...END_BEFORE, status: 'in progress' }, 'not-committed'],
    ['too old, but lost', { ...END_BEFORE, status: null }, 'not-committed'],
    ['aborted', { ...END_AFTER, status: 'aborted' }, 'not-committed'],
    ['prepared', { ...END_AFTER, status: 'in progress', prepared: true }, 'committed'],
    ['too old', { ...END_AFTER, status: null }, 'unknown'],
    ['not issued', { ...END_AFTER, ...future }, 'not-committed'],
    ['committed, end unknown', { status: 'committed' }, 'unknown'],
    ['committed, end unknown, higher than any then', { status: 'committed', nextXid: '800' }, 'not-committed'],
    ['committed, end unknown, one lower', { status: 'committed', nextXid: '801' }, 'unknown'],
    ['aborted, end unknown', { status: 'aborted' }, 'not-committed'],
    ['not issued, end unknown', future, 'not-committed'],
    ['prepared, end unknown', { status: 'in progress', prepared: true }, 'unknown'],
    ['running, end unknown', { status: 'in progress' }, 'not-committed'],
    ['too old, end unknown', { status: null }, 'unknown'],
  ])('after a restart: %s', (_what, server, expected) => {
    expect(outcome({ ...RESTARTED, ...server })).toBe(expected);
  });

  it('remembers where the life began from the first look at it', () => {
    const now = { ...RESTARTED, status: 'committed' };
    expect(outcome(now, { ...RESTARTED, ...END_AFTER })).toBe('committed');
    expect(outcome(now, { ...RESTARTED, ...END_BEFORE })).toBe('not-committed');
    // Not of this life, or from before it was a primary: worth nothing.
    expect(outcome(now, { instance: '150.c150', ...END_BEFORE })).toBe('unknown');
    expect(outcome(now, { ...RESTARTED, nextXid: '1', recovery: true })).toBe('unknown');
  });

  it('is careful where a crash and a reset of statistics look alike', () => {
    const origin = { instance: '100.s1' };
    for (const instance of ['100.s2', '100.c2']) {
      const again = (server: FakeServer) => outcome({ instance, ...server }, undefined, origin);
      expect(again({ ...END_AFTER, status: 'committed' })).toBe('committed');
      expect(again({ ...END_BEFORE, status: 'committed' })).toBe('unknown');
      expect(again({ status: 'committed', nextXid: '1' })).toBe('unknown');
      expect(again({ ...END_BEFORE, status: 'aborted' })).toBe('not-committed');
      expect(again({ ...END_BEFORE, status: 'in progress' })).toBe('wait');
      expect(again({ ...END_AFTER, status: 'in progress' })).toBe('wait');
    }
    expect(outcome({ instance: '100.c2', ...END_BEFORE, status: 'committed' }, undefined, { instance: '100.c1' })).toBe(
      'not-committed',
    );
  });

  it.each<[string, FakeServer, string]>([
    ['committed before the switch', { history: '1\t0/2001\tx', status: 'committed' }, 'committed'],
    ['committed, by an alias at it', { history: '1\t0/2000\tx', status: 'committed' }, 'not-committed'],
    ['committed, by an alias behind it', { history: '1\t0/1000\tx', status: 'committed' }, 'not-committed'],
    ['running, as an alias', { history: '1\t0/1000\tx', status: 'in progress' }, 'not-committed'],
    ['aborted', { history: '1\t0/2001\tx', status: 'aborted' }, 'not-committed'],
    ['prepared before the switch', { history: '1\t0/2001\tx', status: 'in progress', prepared: true }, 'committed'],
    ['not issued', { history: '1\t0/2001\tx', ...future }, 'not-committed'],
    ['committed, switch unknown', { mayRead: false, status: 'committed' }, 'unknown'],
    ['aborted, switch unknown', { mayRead: false, status: 'aborted' }, 'not-committed'],
    ['not issued, switch unknown', { mayRead: false, ...future }, 'not-committed'],
    [
      'committed, two switches on',
      { timeline: 3, history: '1\t0/2001\tx\n2\t0/3000\tx', status: 'committed' },
      'committed',
    ],
    [
      'lost, two switches on',
      { timeline: 3, history: '1\t0/1001\tx\n2\t0/3000\tx', status: 'committed' },
      'not-committed',
    ],
    ['another branch', { timeline: 3, history: '2\t0/3000\tx', status: 'aborted' }, 'unknown'],
  ])('after a promotion: %s', (_what, server, expected) => {
    expect(outcome({ ...PROMOTED, ...server })).toBe(expected);
  });

  it('does not ask a server that does not go on with the history', () => {
    const late = { ...PROMOTED, history: '1\t0/1000\tx' };
    expect(outcome({ ...RESTARTED, system: '78', status: 'committed' })).toBe('unknown');
    expect(outcome({ ...RESTARTED, system: '78', status: 'committed' }, RESTARTED)).toBe('unknown');
    expect(outcome({ ...RESTARTED, recovery: true, status: 'committed' })).toBe('unknown');
    expect(outcome({ ...RESTARTED, ...END_BEFORE, status: 'aborted' }, undefined, late)).toBe('unknown');
    // Promoted on its own to a timeline of the same number.
    const twin = { instance: '400.c400', timeline: 2, history: '1\t0/1111\tx', ...END_AFTER, status: 'committed' };
    expect(outcome(twin, undefined, late)).toBe('unknown');
    expect(outcome({ ...twin, history: '1\t0/1000\tx' }, undefined, late)).toBe('committed');
  });

  it('does not measure by the timeline of facts from before the promotion', () => {
    const early = { ...ORIGIN, recovery: true };
    const now = { ...PROMOTED, timeline: 3, history: '1\t0/1000\tx\n2\t0/3000\tx' };
    expect(outcome({ ...now, status: 'committed' }, undefined, early)).toBe('unknown');
    expect(outcome({ ...now, status: 'aborted' }, undefined, early)).toBe('not-committed');
    expect(outcome({ ...now, instance: ORIGIN.instance, status: 'committed' }, undefined, early)).toBe('committed');
  });

  it('does not put a broken token into a query', () => {
    const token = { token: { xid: "1'; drop table x", lsn: '0/1' }, position: 1n };
    expect(ask(resolve(token, factsOf(ORIGIN), factsOf(ORIGIN)), () => [])).toBe('unknown');
  });

  it('throws when the question is refused', () => {
    expect(() => outcome({ ...ORIGIN, error: '42501' })).toThrow(/SQLSTATE 42501/);
  });
});

describe('terminate, cancel and lookup', () => {
  it('ends a session', () => {
    const asked: string[] = [];
    let looks = 0;
    const gone = ask(terminate('4711'), (sql) => {
      asked.push(sql);
      if (!sql.includes('pg_stat_activity')) return [['t']];
      return ++looks < 3 ? [[''], ['1']] : [['']];
    });
    expect(gone).toBe(true);
    expect(asked[0]).toBe('SELECT pg_terminate_backend(4711)');
    expect(asked).toHaveLength(4);
    expect(ask(terminate('4711'), (sql) => (sql.includes('pg_stat_activity') ? [[''], ['1']] : [['t']]))).toBe(false);
  });

  it('tells when it may not', () => {
    expect(ask(terminate('4711'), (sql) => (sql.includes('pg_stat_activity') ? [[''], ['1']] : '42501'))).toBe(false);
    expect(ask(terminate('4711'), (sql) => (sql.includes('pg_stat_activity') ? [['']] : '42501'))).toBe(true);
    expect(ask(terminate('4711'), () => '!57P01')).toBe(false);
    expect(ask(terminate(''), () => [])).toBe(false);
    expect(ask(terminate('1 or 1'), () => [])).toBe(false);
  });

  it('sends a cancel request that greet understands', () => {
    for (const secret of [int32(5), Buffer.alloc(64, 6)]) {
      const end = new End(cancel({ pid: 4711, secret: secret.toString('base64') }), 'server');
      end.run(null);
      expect(meet({}, {}, end.sent).result).toEqual({ kind: 'cancel', key: Uint8Array.of(...int32(4711), ...secret) });
    }
    const nothing = new End(cancel(null), 'server');
    expect(nothing.run(null)).toHaveLength(0);
  });

  it.each<[string, Row[], Secret | null]>([
    ['an md5 verifier', [['u', md5Verifier('u', 'x')]], { verifier: md5Verifier('u', 'x') }],
    ['a SCRAM verifier', [['u', scramVerifier('x')]], { verifier: scramVerifier('x') }],
    ['a password', [['u', 'x']], { password: 'x' }],
    ['one column', [['x']], { password: 'x' }],
    ['NULL', [['u', null]], null],
    ['nothing', [['u', '']], null],
    ['no row', [], null],
  ])('looks up %s', (_what, rows, secret) => {
    for (const [, size] of CUTS) expect(ask(lookup('select ...', 'u'), () => rows, size)).toEqual(secret);
  });

  it('tells a failed lookup from an unknown user', () => {
    expect(() => ask(lookup('select', 'u'), () => '42P01')).toThrow(/SQLSTATE 42P01/);
    expect(() =>
      ask(lookup('select', 'u'), () => [
        ['u', 'x'],
        ['v', 'y'],
      ]),
    ).toThrow(/more than one row/);
    expect(() => ask(lookup('select', 'u'), () => [[]])).toThrow(/no column/);
  });
});

// ------------------------------------------------------------------------------------------------------------- captures

const CAPTURES = `${process.env.OUTLIVE_CAPTURES ?? fileURLToPath(new URL('../../../shared/captures', import.meta.url))}/postgres/`;

describe.skipIf(!existsSync(CAPTURES))(`captures of real connections (skipped where ${CAPTURES} is absent)`, () => {
  const streams = (name: string): Record<'c2s' | 's2c', Buffer> => {
    const lines = readFileSync(`${CAPTURES}${name}.jsonl`, 'utf8').trim().split('\n');
    const chunks = lines.map((line) => JSON.parse(line) as { dir: 'c2s' | 's2c'; hex: string });
    const joined = (dir: string) =>
      Buffer.concat(chunks.filter((c) => c.dir === dir).map((c) => Buffer.from(c.hex, 'hex')));
    return { c2s: joined('c2s'), s2c: joined('s2c') };
  };

  it.each([
    ['wswiki-pgsql', 'oryx', 'mailstore'],
    ['ndpi-pgsql', 'oryx', 'mailstore'],
    ['ndpi-pgsql.c4', 'test', 'postgres'],
    ['suricata-pgsql-simple-query-rollback', 'ju-Test', 'Test'],
    ['suricata-pgsql-copy-data-out', 'rules', 'rules'],
    ['zeek-psql-create-insert-select-delete-drop', 'postgres', 'postgres'],
  ])('meets the client of %s', (name, user, database) => {
    for (const [, size] of CUTS) {
      expect(meet({}, {}, streams(name).c2s, size).result).toMatchObject({
        kind: 'session',
        identity: { user, database },
        passThrough: null,
      });
    }
  });

  it('closes on the malformed start', () => {
    expect(meet({}, {}, streams('zeek-bad-startup-message-1').c2s).result).toMatchObject({ kind: 'closed' });
  });

  it('asks real clients for md5 and SCRAM, and reads what they answer', () => {
    for (const [name, auth] of [
      ['wswiki-pgsql', 'md5'],
      ['suricata-pgsql-copy-data-out', 'md5'],
    ]) {
      const end = meet({ auth }, { secrets: {} }, streams(name).c2s);
      expect(end.result).toMatchObject({ kind: 'closed', error: { code: '28P01' } });
    }
    for (const name of ['suricata-pgsql-simple-query-rollback', 'zeek-psql-create-insert-select-delete-drop']) {
      // The client answered another nonce than ours.
      const end = meet({ auth: 'scram-sha-256' }, {}, streams(name).c2s);
      expect(end.result).toMatchObject({ error: { code: '08P01', message: 'invalid SCRAM response' } });
    }
  });

  it('reads what real servers say at login', () => {
    const { c2s, s2c } = streams('wswiki-pgsql');
    const user = { user: 'oryx', database: 'mailstore', secret: { verifier: md5Verifier('oryx', 'x') } };
    for (const [, size] of CUTS) {
      const end = feed(new End(login({ identity: user, startup: null, tls: 'off' }), 'server'), s2c, size);
      expect(end.result).toMatchObject({
        ok: true,
        login: {
          backendId: String(0x58e8),
          facts: { parameters: expect.arrayContaining([['server_version', '7.4.6']]) },
        },
      });
    }
    expect(c2s.length).toBeGreaterThan(0);

    const refused = streams('zeek-psql-login-no-role').s2c;
    const end = feed(new End(login({ identity: user, startup: null, tls: 'prefer' }), 'server'), refused);
    expect(end.result).toMatchObject({
      ok: false,
      transient: false,
      error: { code: '28000', message: 'role "test" does not exist' },
    });

    const broken = feed(
      new End(login({ identity: user, startup: null, tls: 'off' }), 'server'),
      streams('zeek-bad-backend-message-1').s2c,
    );
    expect(() => broken.result).toThrow(/impossible length/);
  });
});
