import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { putUint64, utf16 } from '../../codecs/tds/bytes.js';
import {
  type Column,
  DONE_ATTN,
  DONE_COUNT,
  DONE_MORE,
  ENV_BEGIN,
  ENV_COMMIT,
  ENV_ROLLBACK,
  type EnvChange,
  envChangeDescriptor,
  FEATURE_SESSIONRECOVERY,
  integerOf,
  readColumns,
  readDone,
  readEnvChange,
  readMessage,
  readReturnStatus,
  readRow,
} from '../../codecs/tds/facts.js';
import { readLogin7, revealPassword, writeLogin7 } from '../../codecs/tds/login7.js';
import {
  ATTENTION,
  BULK_LOAD,
  LOGIN7,
  PacketReader,
  PRELOGIN,
  RESETCONNECTION,
  Repacketizer,
  RPC,
  SQL_BATCH,
  TABULAR_RESULT,
  TRANSACTION_MANAGER,
  typeName,
} from '../../codecs/tds/packet.js';
import { readPrelogin, writePrelogin } from '../../codecs/tds/prelogin.js';
import { readRecoveryRequest, writeRecoveryRequest } from '../../codecs/tds/recovery.js';
import { readSqlBatch, readTransactionRequest, sqlText, transactionRequestName } from '../../codecs/tds/request.js';
import { readRpc, statementText } from '../../codecs/tds/rpc.js';
import {
  COLMETADATA,
  DONE,
  DONEINPROC,
  DONEPROC,
  ENVCHANGE,
  ERROR,
  RETURNSTATUS,
  TokenReader,
} from '../../codecs/tds/tokens.js';
import { BIGVARCHRTYPE, INT1TYPE, INT2TYPE, INT4TYPE, INTNTYPE, NVARCHARTYPE } from '../../codecs/tds/types.js';
import { dialectOf, TDS_7_4 } from '../../codecs/tds/version.js';
import {
  bytewise,
  captured,
  haveTdsCaptures,
  messagesOf,
  PacketLog,
  pieces,
  type SeenMessage,
  streamOf,
  TDS_CAPTURES,
  TokenLog,
  tdsCaptures,
  tokensOf,
} from '../kit/tds-captures.js';

/** The version that the client of a captured connection asks for; 7.4 where that is hidden by TLS. */
function dialectIn(client: Uint8Array): number {
  const login = messagesOf(client, 'client').find(({ type }) => type === LOGIN7);
  return login === undefined ? 0x74 : dialectOf(Buffer.from(login.payload).readUInt32LE(4));
}

describe.skipIf(!haveTdsCaptures)(`captures of real connections (skipped where ${TDS_CAPTURES} is absent)`, () => {
  it.each(tdsCaptures)('%s: packets are the same wherever chunks end, and come out as they went in', (name) => {
    const chunks = captured(name);
    for (const from of ['client', 'server'] as const) {
      const messages = messagesOf(streamOf(chunks, from), from);
      expect(messages.length).toBeGreaterThan(0);
      const stream = Buffer.concat(messages.map(({ raw }) => raw));
      const told = (parts: Uint8Array[]): string[] => {
        const log = new PacketLog();
        const reader = new PacketReader(from);
        for (const part of parts) expect(reader.push(part, 0, part.length, log)).toBe(part.length);
        expect(reader.between).toBe(true);
        expect(Buffer.concat(log.out).equals(stream)).toBe(true);
        return log.events;
      };
      const whole = told([stream]);
      expect(told(bytewise(stream))).toEqual(whole);
      for (const { raw } of messages) {
        const once = new PacketLog();
        new PacketReader(from).push(raw, 0, raw.length, once);
        // In every packet: around its header, and once in its payload.
        for (let at = 0; at < raw.length; at += Buffer.from(raw).readUInt16BE(at + 2)) {
          for (const cut of [...Array(10).keys(), 100].map((offset) => at + offset)) {
            if (cut >= raw.length) continue;
            const log = new PacketLog();
            const reader = new PacketReader(from);
            for (const part of pieces(raw, [cut])) reader.push(part, 0, part.length, log);
            expect(log.events).toEqual(once.events);
          }
        }
      }
    }
  });

  it.each(tdsCaptures)('%s: tokens are the same wherever chunks end', (name) => {
    const chunks = captured(name);
    const dialect = dialectIn(streamOf(chunks, 'client'));
    const [, ...responses] = messagesOf(streamOf(chunks, 'server'), 'server').filter(({ type }) => type === 4);
    const streams = responses.map(({ payload }) => payload);
    const all = Buffer.concat(streams);
    const whole = tokensOf([all], new TokenReader(dialect));
    expect(tokensOf(streams, new TokenReader(dialect))).toEqual(whole);
    expect(tokensOf(bytewise(all), new TokenReader(dialect))).toEqual(whole);
    const reader = new TokenReader(dialect);
    for (const stream of streams) {
      const before = reader.freeze();
      const told = tokensOf([stream], reader);
      for (let cut = 1; cut < stream.length; cut++) {
        const again = TokenReader.thaw(before);
        const log = new TokenLog(again);
        again.push(stream, 0, cut, log);
        const moved = TokenReader.thaw(structuredClone(again.freeze()));
        Object.assign(log, { reader: moved });
        moved.push(stream, cut, stream.length, log);
        moved.endMessage();
        if (log.all().join() !== told.join()) expect({ cut, events: log.all() }).toEqual({ cut, events: told });
      }
    }
  });
});

// ------------------------------------------------------------------------------------------- what INDEX.md says of them

/** One step of what a client did, as INDEX.md has it. */
interface Step {
  /** Which of several connections. */
  readonly connection: string;
  readonly action: string;
  readonly outcome: string;
  /** What the client took for its transaction afterwards, as hexadecimal. */
  readonly descriptor: string | null;
}

function stepsOf(index: string, name: string): Step[] {
  const section = index.split(/^## /m).find((each) => each.startsWith(`${name}\n`)) ?? '';
  return [...section.matchAll(/^\d+\. (?:\[(\w+)\] )?`(.*?)`(?: → (.*))?$/gm)].map(
    ([, connection = '', action, outcome = '']) => {
      return { connection, action, outcome, descriptor: /\{txdesc (\w+)/.exec(outcome)?.[1] ?? null };
    },
  );
}

/** One message of a client with what answered it. */
interface Exchanged {
  readonly request: SeenMessage;
  readonly answer: Answer | null;
}

interface Answer {
  readonly rows: string[];
  readonly rowCount: number;
  readonly returnStatus: number | null;
  readonly errors: string[];
  readonly changes: EnvChange[];
  readonly attention: boolean;
  /** The last DONE says that nothing follows, and no other does. */
  readonly final: boolean;
}

const PRINTABLE = [INTNTYPE, INT4TYPE, INT2TYPE, INT1TYPE, NVARCHARTYPE, BIGVARCHRTYPE];

function answerIn(payload: Uint8Array, dialect: number): Answer {
  const answer: { -readonly [K in keyof Answer]: Answer[K] } = {
    rows: [],
    rowCount: 0,
    returnStatus: null,
    errors: [],
    changes: [],
    attention: false,
    final: false,
  };
  const ends: boolean[] = [];
  let columns: readonly Column[] = [];
  const reader = new TokenReader(dialect);
  reader.wholeRows = true;
  reader.push(payload, 0, payload.length, {
    token(type, bytes, start, end) {
      switch (type) {
        case DONE:
        case DONEPROC:
        case DONEINPROC: {
          const { status, rowCount } = readDone(bytes, start, end, dialect);
          if ((status & DONE_COUNT) !== 0) answer.rowCount += Number(rowCount);
          if ((status & DONE_ATTN) !== 0) answer.attention = true;
          ends.push(type !== DONEINPROC && (status & DONE_MORE) === 0);
          break;
        }
        case COLMETADATA:
          columns = readColumns(bytes, start, end, { dialect }) ?? columns;
          break;
        case RETURNSTATUS:
          answer.returnStatus = readReturnStatus(bytes, start, end);
          break;
        case ERROR: {
          const { number, state, class: severity } = readMessage(bytes, start, end, dialect);
          answer.errors.push(`${number} st${state} cl${severity}`);
          break;
        }
        case ENVCHANGE:
          answer.changes.push(readEnvChange(bytes, start, end));
          break;
      }
    },
    row(_, bytes, start, end) {
      const values = readRow(columns, bytes, start, end).map((value, index) => {
        const { type } = columns[index];
        if (value === null) return 'NULL';
        if (!PRINTABLE.includes(type)) return '?';
        if (type === NVARCHARTYPE) return JSON.stringify(utf16(value, 0, value.length));
        if (type === BIGVARCHRTYPE) return JSON.stringify(Buffer.from(value).toString('latin1'));
        // tedious has bigint as text.
        return value.length === 8 ? `"${Buffer.from(value).readBigInt64LE()}"` : String(integerOf(value));
      });
      answer.rows.push(`(${values.join(', ')})`);
    },
    rows() {},
  });
  reader.endMessage();
  return { ...answer, final: ends.indexOf(true) === ends.length - 1 && ends.length > 0 };
}

/** The requests after the login, with their answers. */
function exchangesIn(name: string): { dialect: number; exchanges: Exchanged[] } {
  const chunks = captured(name);
  const dialect = dialectIn(streamOf(chunks, 'client'));
  const requests = messagesOf(streamOf(chunks, 'client'), 'client').filter(
    ({ type }) => type !== PRELOGIN && type !== LOGIN7,
  );
  const [, , ...answers] = messagesOf(streamOf(chunks, 'server'), 'server').filter(
    ({ type }) => type === TABULAR_RESULT,
  );
  expect(answers.length).toBeLessThanOrEqual(requests.length);
  return {
    dialect,
    exchanges: requests.map((request, index) => ({
      request,
      answer: index < answers.length ? answerIn(answers[index].payload, dialect) : null,
    })),
  };
}

/** What a request is, in the words of INDEX.md; `about` is its text or name. */
function described(
  { type, status, payload }: SeenMessage,
  dialect: number,
): { kind: string; about: string; descriptor: bigint | null } {
  switch (type) {
    case SQL_BATCH: {
      const batch = readSqlBatch(payload, 0, payload.length, dialect);
      const reset = (status & RESETCONNECTION) !== 0;
      return { kind: reset ? 'reset' : 'batch', about: sqlText(batch), descriptor: batch.headers.descriptor };
    }
    case TRANSACTION_MANAGER: {
      const request = readTransactionRequest(payload, 0, payload.length, dialect);
      return {
        kind: transactionRequestName(request.type),
        about: request.name,
        descriptor: request.headers.descriptor,
      };
    }
    case RPC: {
      const { headers, calls } = readRpc(payload, 0, payload.length, dialect);
      expect(calls).toHaveLength(1);
      expect(calls[0].parameters.at(-1)?.end ?? payload.length).toBe(payload.length);
      return { kind: calls[0].name, about: statementText(payload, calls[0]) ?? '', descriptor: headers.descriptor };
    }
    default:
      return { kind: typeName(type), about: '', descriptor: null };
  }
}

/** What a step sends, as {@link described} names it. */
function expected({ action, outcome }: Step): { kind: string; about?: string }[] {
  if (/EINVALIDSTATE/.test(outcome)) return [];
  const [, verb, rest] = /^([a-zA-Z ]+?)(?:\(|: | |$)(.*)$/s.exec(action) ?? [];
  const text = rest?.replace(/ — params .*$/s, '');
  const named = /^(?:name=)?'(.*?)'\)/.exec(rest ?? '')?.[1];
  switch (verb) {
    case 'beginTransaction':
      return [{ kind: 'TM_BEGIN_XACT', about: named }];
    case 'commitTransaction':
      return [{ kind: 'TM_COMMIT_XACT', about: named }];
    case 'rollbackTransaction':
      return [{ kind: 'TM_ROLLBACK_XACT', about: named }];
    case 'saveTransaction':
      return [{ kind: 'TM_SAVE_XACT', about: named }];
    case 'execSqlBatch':
      return [{ kind: 'batch', about: text }];
    case 'execSql':
      return [{ kind: 'sp_executesql', about: text }];
    case 'reset':
      return [{ kind: 'reset' }];
    case 'prepare':
      return [{ kind: 'sp_prepare', about: text.replace(/^\): /, '') }];
    case 'execute':
      return [{ kind: 'sp_execute' }];
    case 'unprepare':
      return [{ kind: 'sp_unprepare' }];
    case 'execBulkLoad':
      return [{ kind: 'batch' }, { kind: 'BulkLoad' }];
    case 'tsql':
      return action.startsWith('tsql batch: ')
        ? [{ kind: 'batch', about: action.slice(12).replaceAll('\\n', '\n') }]
        : [];
    default:
      return [];
  }
}

describe.skipIf(!haveTdsCaptures)(
  `captures and what INDEX.md says of them (skipped where ${TDS_CAPTURES} is absent)`,
  () => {
    const index = haveTdsCaptures ? readFileSync(`${TDS_CAPTURES}INDEX.md`, 'utf8') : '';
    // The requests of this one are encrypted.
    const readable = tdsCaptures.filter((name) => !name.startsWith('18-'));

    it.each(readable)('%s: requests, results, transactions', (name) => {
      const { dialect, exchanges } = exchangesIn(name);
      const steps = stepsOf(index, name);
      const freetds = name.includes('freetds');
      // tedious begins with a batch of SET statements; the first login of 16m was refused.
      const asked = exchanges
        .slice(freetds || exchanges.length === 0 ? 0 : 1)
        .filter(({ request }) => request.type !== ATTENTION);
      const kinds = asked.map(({ request }) => described(request, dialect));
      const sends = (step: Step) => expected(step);
      const connections = [...new Set(steps.map(({ connection }) => connection))];
      const mine = connections
        .map((connection) => steps.filter((step) => step.connection === connection))
        .filter((own) => {
          const wanted = own.flatMap(sends);
          return wanted.length === kinds.length && wanted.every(({ kind }, at) => kind === kinds[at].kind);
        });
      expect(mine.length, kinds.map(({ kind }) => kind).join()).toBeGreaterThan(0);
      const [own] = mine;
      let at = 0;
      let transaction = 0n;
      for (const step of own) {
        for (const { about } of expected(step)) {
          const { request, answer } = asked[at];
          const kind = kinds[at++];
          if (about !== undefined) expect(kind.about.trim()).toBe(about.trim());
          if (request.type === BULK_LOAD) expect(kind.descriptor).toBeNull();
          else if (!freetds && !name.startsWith('20-')) expect(kind.descriptor).toBe(transaction);
          for (const change of answer?.changes ?? []) {
            if (change.type === ENV_BEGIN) transaction = envChangeDescriptor(change.newValue);
            // Babelfish tells of ends where no transaction is, with descriptors of nothing.
            if (change.type === ENV_COMMIT || change.type === ENV_ROLLBACK) transaction = 0n;
          }
          if (answer === null) {
            expect(step.outcome).toMatch(/ERROR E|^$/);
            continue;
          }
          expect(answer.final).toBe(true);
          const { outcome } = step;
          const errors = /\[errors (.*?)\]/.exec(outcome)?.[1] ?? /^ERROR (\d+)/.exec(outcome)?.[1];
          if (request.type !== SQL_BATCH || !step.action.startsWith('execBulkLoad')) {
            if (errors !== undefined)
              expect(answer.errors.map((error) => errors.includes(error.split(' ')[0]))).toContain(true);
            else if (!freetds) expect(answer.errors).toEqual([]);
            const count = /rowCount=(\d+)/.exec(outcome)?.[1];
            if (count !== undefined && errors === undefined) expect(answer.rowCount).toBe(Number(count));
          }
          const rows = /rows\((\d+)\): (.*?)(; returns| \{txdesc)/.exec(outcome);
          if (rows !== null) {
            expect(answer.rows).toHaveLength(Number(rows[1]));
            const plain = answer.rows.join(' ');
            if (!plain.includes('?') && !rows[2].includes('…')) expect(rows[2]).toBe(plain);
          }
          if (/returns status=0/.test(outcome)) expect(answer.returnStatus).toBe(0);
        }
        if (step.descriptor !== null && !name.startsWith('20-')) {
          const bytes = new Uint8Array(8);
          putUint64(bytes, 0, transaction);
          expect(Buffer.from(bytes).toString('hex')).toBe(step.descriptor);
        }
      }
      expect(at).toBe(asked.length);
    });
  },
);

describe.skipIf(!haveTdsCaptures)(`other messages in captures (skipped where ${TDS_CAPTURES} is absent)`, () => {
  it.each(tdsCaptures)('%s: PRELOGIN and LOGIN7 come out as they went in', (name) => {
    const chunks = captured(name);
    const client = messagesOf(streamOf(chunks, 'client'), 'client');
    const [reply] = messagesOf(streamOf(chunks, 'server'), 'server');
    for (const [sender, payload] of [
      ['client', client[0].payload],
      ['server', reply.payload],
    ] as const) {
      const prelogin = readPrelogin(payload, 0, payload.length, sender);
      expect(writePrelogin(prelogin.options)).toEqual(payload);
    }
    for (const { type, payload } of client) {
      if (type !== LOGIN7) continue;
      const login = readLogin7(payload, 0, payload.length);
      expect(login).toMatchObject({ userName: 'babelfish_user', database: 'testdb' });
      expect(Buffer.from(revealPassword(login.password)).toString('utf16le')).toBe('12345678');
      expect(writeLogin7(login)).toEqual(payload);
      const other = writeLogin7({ ...login, database: 'another database', hostName: '', packetSize: 8000 });
      const read = readLogin7(other, 0, other.length);
      expect({ ...read, layout: null }).toEqual({
        ...login,
        database: 'another database',
        hostName: '',
        packetSize: 8000,
        layout: null,
      });
    }
  });

  it('10-bulk-in-tx: the rows of each BulkLoad', () => {
    const loads = messagesOf(streamOf(captured('10-bulk-in-tx'), 'client'), 'client').filter(
      ({ type }) => type === BULK_LOAD,
    );
    const counts = loads.map(({ payload }) => {
      let rows = 0;
      const reader = new TokenReader(TDS_7_4, undefined, 'client');
      const types: number[] = [];
      reader.push(payload, 0, payload.length, { rows: (count) => (rows += count), token: (type) => types.push(type) });
      reader.endMessage();
      expect(types.filter((type) => type !== DONE)).toEqual([COLMETADATA]);
      return rows;
    });
    expect(counts).toEqual([5, 3000, 3, 2]);
  });

  it.each(tdsCaptures)('%s: requests in packets of other sizes', (name) => {
    const messages = messagesOf(streamOf(captured(name), 'client'), 'client');
    for (const size of [512, 4096, 32_767]) {
      const out: Uint8Array[] = [];
      const repacketizer = new Repacketizer(size, (bytes) => out.push(bytes));
      const reader = new PacketReader('client');
      for (const { raw } of messages) reader.push(raw, 0, raw.length, repacketizer);
      const again = messagesOf(Buffer.concat(out), 'client');
      expect(again.map(({ type, payload }) => ({ type, payload }))).toEqual(
        messages.map(({ type, payload }) => ({ type, payload })),
      );
      for (const { raw, payload } of again) {
        expect(raw.length).toBe(payload.length + 8 * Math.max(1, Math.ceil(payload.length / (size - 8))));
      }
    }
  });

  const file = (name: string): Uint8Array => readFileSync(`${TDS_CAPTURES}${name}`);
  const payloadIn = (name: string): Uint8Array => {
    const bytes = file(name);
    const [message] = messagesOf(bytes, bytes[0] === TABULAR_RESULT ? 'server' : 'client');
    return message.payload;
  };
  const skim = (payload: Uint8Array, dialect: number): string[] => {
    const told = tokensOf([payload], new TokenReader(dialect));
    expect(tokensOf(bytewise(payload), new TokenReader(dialect))).toEqual(told);
    return told.map((event) => event.split(' ')[1]);
  };

  it('reads what the specification gives as examples, but for those with slips', () => {
    for (const name of ['01-pre-login-request', '02-login-request', '03-login-request-federated-auth']) {
      const payload = payloadIn(`ms-tds-examples/${name}.bin`);
      if (name.startsWith('01')) {
        expect(writePrelogin(readPrelogin(payload, 0, payload.length, 'client').options)).toEqual(payload);
      } else {
        expect(writeLogin7(readLogin7(payload, 0, payload.length))).toEqual(payload);
      }
    }
    for (const name of ['16-featureext-sessionrecovery', '20-featureext-azuresqlsupport']) {
      const payload = payloadIn(`ms-tds-examples/${name}.bin`);
      const login = readLogin7(payload, 0, payload.length);
      expect(writeLogin7(login)).toEqual(payload);
      const asked = login.features?.find(({ id }) => id === FEATURE_SESSIONRECOVERY)?.data ?? new Uint8Array(0);
      expect(Buffer.from(writeRecoveryRequest(readRecoveryRequest(asked))).equals(asked)).toBe(true);
    }
    expect(skim(payloadIn('ms-tds-examples/05-login-response-federated-auth.bin'), TDS_7_4)).toContain('LOGINACK');
    expect(skim(payloadIn('ms-tds-examples/07-sql-batch-server-response.bin'), TDS_7_4)).toEqual([
      'COLMETADATA',
      'rows',
      'DONE',
    ]);
    expect(skim(payloadIn('ms-tds-examples/09-rpc-server-response.bin'), TDS_7_4)).toEqual([
      'DONEINPROC',
      'RETURNSTATUS',
      'DONEPROC',
    ]);
    expect(skim(payloadIn('ms-tds-examples/18-table-response-sessionstate.bin'), TDS_7_4)).toContain('SESSIONSTATE');
    expect(skim(payloadIn('ms-tds-examples/21-featureextack-azuresqlsupport.bin'), TDS_7_4)).toContain('FEATUREEXTACK');
    expect(skim(payloadIn('ms-tds-examples/15-sparse-column-select.bin'), TDS_7_4)).toContain('COLMETADATA');
    const batch = payloadIn('ms-tds-examples/06-sql-batch-client-request.bin');
    expect(sqlText(readSqlBatch(batch, 0, batch.length, TDS_7_4))).toContain('select');
    const rpc = payloadIn('ms-tds-examples/08-rpc-client-request.bin');
    expect(readRpc(rpc, 0, rpc.length, TDS_7_4).calls).toHaveLength(1);
    expect(messagesOf(file('ms-tds-examples/10-attention-request.bin'), 'client')).toHaveLength(1);
  });

  it('reads what real servers said in public threads', () => {
    expect(skim(file('issue-excerpts/sql2022.login-response.tokens.bin'), TDS_7_4)).toContain('FEATUREEXTACK');
    // Two bytes more were quoted than belong to it.
    const selected = file('issue-excerpts/sql2022.select1-response.tokens.bin').subarray(0, 29);
    expect(skim(selected, TDS_7_4)).toEqual(['COLMETADATA', 'rows', 'DONE']);
    // The driver had asked for column encryption.
    const encrypting = new TokenReader(TDS_7_4);
    encrypting.columnEncryption = true;
    expect(tokensOf([payloadIn('issue-excerpts/mssql-jdbc1599.rpc-response.bin')], encrypting)).toHaveLength(5);
  });
});
