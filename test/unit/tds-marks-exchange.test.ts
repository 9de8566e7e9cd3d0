import { describe, expect, it } from 'vitest';
import tds from '../../codecs/tds/index.js';
import { TDS_7_4 } from '../../codecs/tds/version.js';
import { done, error, serverMessage } from '../../codecs/tds/write.js';
import { CodedError, type Exchange, type Mark, type ServerFacts } from '../../core/contract/index.js';

/** What the gateway asks servers about rows that prove commits, and what it makes of the answers. */
const { find, inspect, install, remove, setup, wrongTable } = tds.markers!;
const FAMILY = '0B1B2C3D-0000-4000-8000-00000000000A';
const MARK: Mark = { id: '00112233445566778899aabbccddeeff', table: 'dbo.marks', database: 'app' };
const ORIGIN: ServerFacts = {
  role: 'primary',
  writable: true,
  system: FAMILY,
  timeline: 0,
  instance: 'then',
  position: -1n,
  lagBytes: null,
  history: { fork: 'one', server: 'ONE' },
};

type Answer = readonly (string | null)[] | number;

/** A row of texts, or the error of that number. */
function answerOf(answer: Answer): Uint8Array {
  if (typeof answer === 'number') {
    const told = error({ number: answer, class: 16, message: 'no' }, TDS_7_4);
    return serverMessage(Buffer.concat([told, done({ status: 2 }, TDS_7_4)]), 4096);
  }
  const column = Buffer.from([0, 0, 0, 0, 1, 0, 0xe7, 0xff, 0x1f, 9, 4, 0xd0, 0, 0x34, 0]);
  const metadata = Buffer.concat([Buffer.from([0x81, answer.length, 0]), ...answer.map(() => column)]);
  const values = answer.map((value) => {
    if (value === null) return Buffer.from([0xff, 0xff]);
    const bytes = Buffer.from(value, 'utf16le');
    return Buffer.concat([Buffer.from([bytes.length & 255, bytes.length >> 8]), bytes]);
  });
  const row = Buffer.concat([Buffer.from([0xd1]), ...values]);
  return serverMessage(Buffer.concat([metadata, row, done({ status: 0x10, rowCount: 1n }, TDS_7_4)]), 4096);
}

/** Runs an exchange against answers in their order. Gives its result and what was asked. */
function against<R>(exchange: Exchange<R>, ...answers: readonly Answer[]): { result: R; asked: string[] } {
  const asked: string[] = [];
  let step = exchange.next();
  while (!step.done) {
    const { send } = step.value as { send?: Uint8Array };
    asked.push(Buffer.from(send!.subarray(30)).toString('utf16le'));
    const answer = answers[asked.length - 1];
    if (answer === undefined) throw new Error(`asked for more: ${asked.at(-1)}`);
    step = exchange.next(answerOf(answer));
  }
  expect(asked.length).toBe(answers.length);
  return { result: step.value, asked };
}

describe('a row', () => {
  it('is there, or is not, on a server of the same history that takes writes', () => {
    expect(against(find(MARK, ORIGIN), ['READ_WRITE', FAMILY, '1']).result).toBe('present');
    const { result, asked } = against(find(MARK, ORIGIN), ['READ_WRITE', FAMILY, '0']);
    expect(result).toBe('absent');
    expect(asked[0]).toContain('FROM dbo.marks WITH (READCOMMITTEDLOCK) WHERE id = 0x00112233445566778899aabbccddeeff');
  });

  it('proves nothing on a secondary, in another history, or where it cannot be read', () => {
    const unknown: readonly (readonly Answer[])[] = [
      [['READ_ONLY', FAMILY, '0']],
      [['READ_ONLY', FAMILY, '1']],
      [
        ['READ_WRITE', 'another', '0'],
        ['TWO', '0'],
      ],
      [
        ['READ_WRITE', 'another', '1'],
        ['TWO', '0'],
      ],
      [['READ_WRITE', null, '0'], 300],
      [208],
      [229],
      [916],
    ];
    for (const answers of unknown) expect(against(find(MARK, ORIGIN), ...answers).result).toBe('unknown');
    expect(against(find(MARK, { ...ORIGIN, system: "'; DROP TABLE t" })).result).toBe('unknown');
  });

  it('proves something in another database that moves with it, or on the very server', () => {
    for (const second of [
      ['TWO', '1'],
      ['ONE', '0'],
    ]) {
      expect(against(find(MARK, ORIGIN), ['READ_WRITE', 'another', '0'], second).result).toBe('absent');
    }
  });

  it('is looked for again while somebody has it locked', () => {
    expect(() => against(find(MARK, ORIGIN), 1222)).toThrow('somebody still has it locked');
    expect(() => against(find(MARK, ORIGIN), 1205)).toThrow('error 1205');
  });
});

it('removes old rows, some at a time', () => {
  const { result, asked } = against(remove('dbo.marks', 3_600_500), ['1000'], ['1000'], ['7']);
  expect(result).toBe(2007);
  expect(asked[0]).toContain('DELETE TOP (1000) FROM dbo.marks WITH (READPAST, ROWLOCK)');
  expect(asked[0]).toContain('DATEADD(second, -3601, SYSUTCDATETIME())');
  expect(() => against(remove('dbo.marks', 1), 229)).toThrow('error 229');
});

it('names what is missing', () => {
  const all = ['1', '2', '1', '1', '1', '1', '1', 'watch'];
  expect(against(inspect('dbo.marks'), all).result).toEqual([]);
  const without = (...at: number[]) => all.map((value, i) => (at.includes(i) ? (i < 2 ? null : '0') : value));
  expect(against(inspect('dbo.marks'), without(0, 1, 5)).result).toEqual(['the table dbo.marks is missing']);
  expect(against(inspect('dbo.marks'), without(1, 2)).result).toEqual(['the procedure dbo.marks_put is missing']);
  expect(against(inspect('dbo.marks'), without(2, 3, 5, 6)).result).toEqual([
    'every user needs EXECUTE on the procedure dbo.marks_put (GRANT ... TO public)',
    'the procedure dbo.marks_put and the table dbo.marks need the same owner',
    'watch needs SELECT on the table dbo.marks, to find rows',
    'watch needs DELETE on the table dbo.marks, to remove old rows',
  ]);
});

it('sets up in one transaction, and says which right is missing', () => {
  const statements = setup('own.marks', "o'neil");
  expect(statements[0]).toContain('CREATE SCHEMA own');
  expect(statements.join()).toContain("SUSER_SID(N'o''neil')");
  const { asked } = against(install(statements), []);
  expect(asked[0]).toMatch(/^SET XACT_ABORT ON;\nBEGIN TRANSACTION;\n.*;\nCOMMIT TRANSACTION$/s);
  for (const [number, words] of [
    [262, 'a right is missing'],
    [1, '(error 1)'],
  ] as const) {
    const told = () => against(install(statements), number);
    expect(told).toThrow(words);
    expect(told).toThrow(CodedError);
  }
});

it('takes names that need no quotes', () => {
  for (const table of ['dbo.marks', 'Own.Marks_2', '_.x']) expect(wrongTable(table)).toBeNull();
  for (const table of ['marks', 'a.b.c', 'dbo.[m]', "dbo.m'", 'dbo.1m', `dbo.${'m'.repeat(101)}`, ''])
    expect(wrongTable(table)).not.toBeNull();
});
