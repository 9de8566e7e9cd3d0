import { pbkdf2Sync } from 'node:crypto';
import { describe, expect, it, vi } from 'vitest';
import { equalText, isMd5Verifier, md5Response, md5Verifier } from '../../codecs/postgres/auth/md5.js';
import { saslprep } from '../../codecs/postgres/auth/saslprep.js';
import {
  belongsTo,
  checkProof,
  checkServerFinal,
  clientFinal,
  clientFirst,
  deriveKeys,
  formatVerifier,
  mockSalt,
  parseVerifier,
  readClientFinal,
  readClientFirst,
  readServerFirst,
  SCRAM,
  SCRAM_PLUS,
  serverFinal,
  serverFirst,
} from '../../codecs/postgres/auth/scram.js';
import { Refusal } from '../../codecs/postgres/errors.js';
import type { CodedError, PluginContext } from '../../core/contract/index.js';
import credentialsFile, { parseCredentials } from '../../plugins/credentials-file/index.js';

const text = (bytes: Uint8Array) => Buffer.from(bytes).toString('utf8');
const salted = (password: string, salt: Uint8Array, iterations: number) =>
  pbkdf2Sync(saslprep(password), salt, iterations, 32, 'sha256');

function refusal(run: () => unknown): { code: string; message: string } {
  try {
    run();
  } catch (error) {
    if (error instanceof Refusal) return error.fields;
    throw error;
  }
  throw new Error('not refused');
}

describe('saslprep', () => {
  // Section 3 of RFC 4013, and what PostgreSQL does where it prohibits: the password as it is.
  it.each([
    ['I\u00adX', 'IX'],
    ['user', 'user'],
    ['USER', 'USER'],
    ['\u00aa', 'a'],
    ['\u2168', 'IX'],
    ['\u0007', '\u0007'],
    ['\u0627\u0031', '\u0627\u0031'],
    ['a\u00a0b', 'a b'],
    ['a\u200bb', 'a b'],
    ['\u00ad', '\u00ad'],
    ['\u0627a\u0628', '\u0627a\u0628'],
    ['\u0627\u00aa\u0628', '\u0627\u00aa\u0628'],
    ['\u00a0\ue000', '\u00a0\ue000'],
    ['\u00a0\u0221', '\u00a0\u0221'],
    ['пароль', 'пароль'],
    ['ｐａｓｓ', 'pass'],
    ['😀\u00a0', '😀\u00a0'],
  ])('%j becomes %j', (password, prepared) => {
    expect(text(saslprep(password))).toBe(prepared);
  });
});

describe('md5', () => {
  it('makes the verifier and the answer of PostgreSQL', () => {
    // The verifier that PostgreSQL 15 stored for user "u" with password "secret".
    const verifier = md5Verifier('u', 'secret');
    expect(verifier).toBe('md514ac701963725e89bfe34a2219d114a2');
    expect(isMd5Verifier(verifier)).toBe(true);
    expect(isMd5Verifier('md5short')).toBe(false);
    expect(md5Response(verifier, Uint8Array.of(1, 2, 3, 4))).toMatch(/^md5[0-9a-f]{32}$/);
  });

  it('compares texts', () => {
    expect(equalText('a', 'a')).toBe(true);
    expect(equalText('a', 'b')).toBe(false);
    expect(equalText('a', 'ab')).toBe(false);
  });
});

describe('SCRAM-SHA-256', () => {
  // The example of RFC 7677, section 3.
  const salt = Buffer.from('W22ZaJ0SNY7soEsUEjb6gQ==', 'base64');
  const keys = deriveKeys(salted('pencil', salt, 4096));
  const verifier = { salt, iterations: 4096, ...keys };
  const first = 'n,,n=user,r=rOprNGfwEbeRWgbNEkqO';
  const challenge = 'r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096';
  const final =
    'c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=';
  const proof = 'v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=';

  it('makes and checks the proofs of RFC 7677', () => {
    const opening = { gs2Header: 'n,,', bare: 'n=user,r=rOprNGfwEbeRWgbNEkqO', nonce: 'rOprNGfwEbeRWgbNEkqO' };
    expect(readClientFirst(first, SCRAM, false)).toEqual(opening);
    const server = readServerFirst(challenge, opening)!;
    expect([server.iterations, text(server.salt)]).toEqual([4096, text(salt)]);
    const made = clientFinal(server.dialogue, null, keys.clientKey);
    expect(made.message).toBe(final);
    expect(checkServerFinal(proof, server.dialogue, made.withoutProof, keys.serverKey)).toBe(true);
    expect(checkServerFinal(proof.replace('6', '7'), server.dialogue, made.withoutProof, keys.serverKey)).toBe(false);
    expect(checkServerFinal('e=other-error', server.dialogue, made.withoutProof, keys.serverKey)).toBe(false);

    const read = readClientFinal(final, server.dialogue, null);
    expect(checkProof(read, server.dialogue, verifier)).toEqual(Uint8Array.from(keys.clientKey));
    expect(serverFinal(server.dialogue, read.withoutProof, keys.serverKey)).toBe(proof);
    const wrong = { ...read, proof: read.proof.map((byte) => byte ^ 1) };
    expect(checkProof(wrong, server.dialogue, verifier)).toBeNull();
  });

  it('reads a verifier that PostgreSQL made, and writes it back', () => {
    // PostgreSQL 15, password "secret".
    const stored =
      'SCRAM-SHA-256$4096:5xADK9wSdIcucqTzGuUUCA==$EinFjTyok0MPQmmZ31jFCv63DCsze+Fpn0fDmFcl6xQ=' +
      ':R8gZJR5Hlza57QvlXPkUlHgWlHCqdw7PNgHL3B0bb8o=';
    const parsed = parseVerifier(stored)!;
    expect(formatVerifier(parsed)).toBe(stored);
    const { clientKey, storedKey, serverKey } = deriveKeys(salted('secret', parsed.salt, parsed.iterations));
    expect(formatVerifier({ ...parsed, storedKey, serverKey })).toBe(stored);
    expect(belongsTo(clientKey, parsed)).toBe(true);
    expect(belongsTo(serverKey, parsed)).toBe(false);
  });

  it.each([
    'SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$AAAA:AAAA',
    'SCRAM-SHA-256$0:W22ZaJ0SNY7soEsUEjb6gQ==$AAAA:AAAA',
    'SCRAM-SHA-512$4096:x$y:z',
    'md514ac701963725e89bfe34a2219d114a2',
    '',
  ])('does not take %j for a verifier', (stored) => {
    expect(parseVerifier(stored)).toBeNull();
  });

  it('binds the channel', () => {
    const endPoint = Buffer.alloc(32, 7);
    const opening = clientFirst('p=tls-server-end-point,,', Buffer.alloc(18, 1));
    const heard = readClientFirst(opening.gs2Header + opening.bare, SCRAM_PLUS, true);
    const dialogue = serverFirst(heard, Buffer.alloc(18, 2), verifier);
    const server = readServerFirst(dialogue.serverFirst, opening)!;
    expect(server.dialogue).toEqual(dialogue);
    const { message } = clientFinal(server.dialogue, endPoint, keys.clientKey);
    expect(checkProof(readClientFinal(message, dialogue, endPoint), dialogue, verifier)).not.toBeNull();
    expect(refusal(() => readClientFinal(message, dialogue, Buffer.alloc(32, 8)))).toMatchObject({
      code: '28000',
      message: 'SCRAM channel binding check failed',
    });
  });

  it.each([
    ['y,,n=,r=abc', SCRAM, true, '28000', 'SCRAM channel binding negotiation error'],
    ['n,,n=,r=abc', SCRAM_PLUS, true, '08P01', 'malformed SCRAM message'],
    ['p=tls-server-end-point,,n=,r=abc', SCRAM, true, '08P01', 'malformed SCRAM message'],
    ['p=tls-unique,,n=,r=abc', SCRAM_PLUS, true, '08P01', 'unsupported SCRAM channel-binding type'],
    ['n,a=root,n=,r=abc', SCRAM, false, '0A000', 'client uses authorization identity, but it is not supported'],
    ['n,,m=x,n=,r=abc', SCRAM, false, '0A000', 'client requires an unsupported SCRAM extension'],
    ['n,,n=,r=', SCRAM, false, '08P01', 'malformed SCRAM message'],
    ['n,,n=,r=a b', SCRAM, false, '08P01', 'malformed SCRAM message'],
    ['n,,r=abc', SCRAM, false, '08P01', 'malformed SCRAM message'],
    ['x,,n=,r=abc', SCRAM, false, '08P01', 'malformed SCRAM message'],
    ['garbage', SCRAM, false, '08P01', 'malformed SCRAM message'],
  ])('refuses the first message %j with %s', (message, mechanism, plusOffered, code, expected) => {
    expect(refusal(() => readClientFirst(message, mechanism, plusOffered))).toMatchObject({ code, message: expected });
  });

  it('lets y pass when it did not offer channel binding', () => {
    expect(readClientFirst('y,,n=,r=abc', SCRAM, false).gs2Header).toBe('y,,');
  });

  it.each([
    ['c=biws,r=other,p=AAAA', '08P01', 'invalid SCRAM response'],
    ['c=eSws,r=abcX,p=AAAA', '08P01', 'unexpected SCRAM channel-binding attribute in client-final-message'],
    ['c=biws,r=abcX,p=AAAA', '08P01', 'malformed SCRAM message'],
    ['c=biws,r=abcX', '08P01', 'malformed SCRAM message'],
    ['c=biws,r=abcX,p=AAAA,x=y', '08P01', 'malformed SCRAM message'],
  ])('refuses the final message %j', (message, code, expected) => {
    const dialogue = { gs2Header: 'n,,', clientFirstBare: 'n=,r=abc', serverFirst: '', nonce: 'abcX' };
    expect(refusal(() => readClientFinal(message, dialogue, null))).toMatchObject({ code, message: expected });
  });

  it.each([
    'r=abc,s=AAAA,i=4096',
    'r=xyzQ,s=AAAA,i=4096',
    'r=abcQ,s=*,i=4096',
    'r=abcQ,s=AAAA,i=0',
    'r=abcQ,s=AAAA,i=99999999999',
    'e=no',
  ])('does not believe the server message %j', (message) => {
    expect(readServerFirst(message, { gs2Header: 'n,,', bare: 'n=,r=abc', nonce: 'abc' })).toBeNull();
  });

  it('mocks the same salt for the same user only', () => {
    const key = Buffer.alloc(32, 9);
    expect(mockSalt(key, 'a')).toEqual(mockSalt(key, 'a'));
    expect(mockSalt(key, 'a')).not.toEqual(mockSalt(key, 'b'));
    expect(mockSalt(key, 'a')).toHaveLength(16);
  });
});

describe('credentials file', () => {
  const scram = `SCRAM-SHA-256$4096:AAAA$${'A'.repeat(43)}=:${'B'.repeat(43)}=`;
  const context = (readFile: (path: string) => Promise<string>) =>
    ({ readFile, log: { info: vi.fn() } }) as unknown as PluginContext;

  it('reads passwords and verifiers', async () => {
    const file = [
      '; users',
      '# and more',
      '',
      '"alice" "a ""quoted"" secret"',
      '"bob" "md514ac701963725e89bfe34a2219d114a2"\r',
      `  "carol"\t"${scram}"  `,
    ].join('\n');
    const plugin = await credentialsFile.create(
      { path: 'users.txt' },
      context(async () => file),
    );
    const lookup = 'lookup' in plugin ? plugin.lookup : null;
    expect(await lookup!('alice', 'db')).toEqual({ password: 'a "quoted" secret' });
    expect(await lookup!('bob', 'db')).toEqual({ verifier: 'md514ac701963725e89bfe34a2219d114a2' });
    expect(await lookup!('carol', 'db')).toEqual({ verifier: scram });
    expect(await lookup!('mallory', 'db')).toBeNull();
  });

  it.each([
    ['"a" "hush"\nb hush', 'line 2'],
    ['"a" "hush" more', 'line 1'],
    ['"a" "hush"\n\n"a" "hush"', 'line 3'],
    ['"a" ""', 'line 1'],
    ['"" "hush"', 'line 1'],
    ['"a" "SCRAM-SHA-256$4096:hush"', 'line 1'],
  ])('refuses %j, naming the line and never the secret', (file, line) => {
    let caught: CodedError | null = null;
    try {
      parseCredentials(file, 'users.txt');
    } catch (error) {
      caught = error as CodedError;
    }
    expect(caught).toMatchObject({ code: 'OUTLIVE_CONFIG_CREDENTIALS', culprit: 'config' });
    expect(caught!.message).toContain(`users.txt, ${line}`);
    expect(caught!.message).not.toContain('hush');
  });

  it('refuses unknown options and unreadable files', async () => {
    const missing = context(async () => Promise.reject(new Error('ENOENT')));
    for (const options of [null, {}, { path: '' }, { path: 'x', pth: 'y' }, { path: 'x' }]) {
      await expect(credentialsFile.create(options, missing)).rejects.toMatchObject({
        code: 'OUTLIVE_CONFIG_CREDENTIALS',
      });
    }
  });
});
