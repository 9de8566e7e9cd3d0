import { describe, expect, it } from 'vitest';
import {
  type Column,
  readColumns,
  readDone,
  readEnvChange,
  readFeatureExtAck,
  readFedAuthInfo,
  readLoginAck,
  readMessage,
  readOrder,
  readReturnValue,
  readRouting,
  readRow,
  readSessionState,
} from '../../codecs/tds/facts.js';
import { readLogin7, writeLogin7 } from '../../codecs/tds/login7.js';
import {
  BULK_LOAD,
  LOGIN7,
  type Message,
  MessageCollector,
  PacketReader,
  PRELOGIN,
  packets,
  Repacketizer,
  RPC,
  SQL_BATCH,
  TABULAR_RESULT,
  TRANSACTION_MANAGER,
} from '../../codecs/tds/packet.js';
import { readPrelogin, writePrelogin } from '../../codecs/tds/prelogin.js';
import { readSqlBatch, readTransactionRequest, sqlText } from '../../codecs/tds/request.js';
import { parameterInteger, parameterText, readRpc, statementText } from '../../codecs/tds/rpc.js';
import { readBatch } from '../../codecs/tds/sql.js';
import {
  COLMETADATA,
  DONE,
  DONEINPROC,
  DONEPROC,
  ENVCHANGE,
  ERROR,
  FEATUREEXTACK,
  FEDAUTHINFO,
  INFO,
  LOGINACK,
  NBCROW,
  ORDER,
  RETURNVALUE,
  ROW,
  SESSIONSTATE,
  TokenReader,
} from '../../codecs/tds/tokens.js';
import { TDS_7_1, TDS_7_2, TDS_7_4 } from '../../codecs/tds/version.js';
import { ProtocolViolation } from '../../core/contract/index.js';
import { type Randomness, randomness } from '../kit/random.js';
import { captured, streamOf, tdsCaptures } from '../kit/tds-captures.js';
import { clientStream, serverTokens } from '../kit/tds-fixtures.js';
import { cut, FUZZ_BYTES, mutate, survives } from '../kit/tds-fuzz.js';

/** What a reader may keep. */
const LIMIT = 64 * 1024;

const DIALECTS = [TDS_7_1, TDS_7_2, TDS_7_4];
const PASSWORD = 'Very$ecret1';

function readToken(type: number, bytes: Uint8Array, start: number, end: number, dialect: number): void {
  switch (type) {
    case DONE:
    case DONEPROC:
    case DONEINPROC:
      readDone(bytes, start, end, dialect);
      break;
    case ENVCHANGE: {
      const change = readEnvChange(bytes, start, end);
      if (change.type === 20 || change.type === 21) readRouting(change);
      break;
    }
    case ERROR:
    case INFO:
      readMessage(bytes, start, end, dialect);
      break;
    case LOGINACK:
      readLoginAck(bytes, start, end);
      break;
    case FEATUREEXTACK:
      readFeatureExtAck(bytes, start, end);
      break;
    case FEDAUTHINFO:
      readFedAuthInfo(bytes, start, end);
      break;
    case SESSIONSTATE:
      readSessionState(bytes, start, end);
      break;
    case ORDER:
      readOrder(bytes, start, end);
      break;
    case RETURNVALUE:
      readReturnValue(bytes, start, end, { dialect });
      break;
  }
}

/** A server's stream. */
function serve(stream: Uint8Array, random: Randomness, where: string): void {
  const dialect = random.one(DIALECTS);
  const tokens = new TokenReader(dialect, LIMIT);
  tokens.wholeRows = random.below(2) === 0;
  tokens.columnEncryption = random.below(8) === 0;
  tokens.dataClassification = random.below(3);
  const { columnEncryption } = tokens;
  let columns: Column[] | null = null;
  const sink = {
    token(type: number, bytes: Uint8Array, start: number, end: number) {
      expect(end - start).toBeLessThanOrEqual(Math.max(LIMIT, bytes.length));
      survives(where, () => readToken(type, bytes, start, end, dialect));
      if (type === COLMETADATA) {
        // What was walked over can be read.
        columns = readColumns(bytes, start, end, { dialect, columnEncryption }) ?? columns;
      }
    },
    row(type: number, bytes: Uint8Array, start: number, end: number) {
      if (columns !== null && (type === ROW || type === NBCROW)) readRow(columns, bytes, start, end);
    },
    rows() {},
  };
  const reader = new PacketReader('server');
  survives(where, () => {
    for (const part of cut(stream, random)) {
      reader.push(part, 0, part.length, {
        packet() {},
        payload: (bytes, start, end) => tokens.push(bytes, start, end, sink),
        end: () => false,
      });
      // A row that is told whole may be as long as the limit, and grow to twice of it.
      expect(tokens.holding).toBeLessThanOrEqual(LIMIT);
    }
  });
}

/** A client's stream. */
function ask(stream: Uint8Array, random: Randomness, where: string): void {
  const dialect = random.one(DIALECTS);
  const read = ({ type, bytes, start, end }: Message): void => {
    switch (type) {
      case PRELOGIN:
        writePrelogin(readPrelogin(bytes, start, end, 'client').options);
        break;
      case LOGIN7:
        writeLogin7(readLogin7(bytes, start, end));
        break;
      case SQL_BATCH:
        readBatch(sqlText(readSqlBatch(bytes, start, end, dialect)));
        break;
      case TRANSACTION_MANAGER:
        readTransactionRequest(bytes, start, end, dialect);
        break;
      case RPC:
        for (const call of readRpc(bytes, start, end, dialect).calls) {
          const statement = statementText(bytes, call);
          if (statement !== null) readBatch(statement);
          for (const parameter of call.parameters) {
            // What was walked over can be read.
            parameterInteger(bytes, parameter);
            parameterText(bytes, parameter);
          }
        }
        break;
      case BULK_LOAD:
        new TokenReader(dialect, LIMIT, 'client').push(bytes, start, end, { token() {}, rows() {} });
        break;
    }
  };
  const collector = new MessageCollector('client', LIMIT, (message) => {
    survives(where, () => read(message));
    return false;
  });
  let out = 0;
  const repacketizer = new Repacketizer(random.one([512, 4096, 32_767]), (bytes) => (out += bytes.length));
  const sinks = [collector, repacketizer];
  for (const sink of sinks) {
    const reader = new PacketReader('client');
    survives(where, () => {
      for (const part of cut(stream, random)) {
        reader.push(part, 0, part.length, sink);
        expect(collector.collecting).toBeLessThanOrEqual(LIMIT);
      }
    });
  }
  expect(out).toBeLessThanOrEqual(2 * stream.length + 8);
}

describe('mutated bytes', { timeout: 3_600_000 }, () => {
  const random = randomness();
  // Some of the captured ones: whole logins, results of all types, parameters of all types.
  const chosen = tdsCaptures.filter((name) => /^(02|06|10|13|14|17)/.test(name)).map(captured);
  const servers = [
    packets(TABULAR_RESULT, Buffer.concat(serverTokens()), 512),
    ...serverTokens().map((token) => packets(TABULAR_RESULT, token, 512)),
    ...chosen.map((chunks) => streamOf(chunks, 'server').subarray(48)),
  ];
  const clients = [clientStream(512), clientStream(4096), ...chosen.map((chunks) => streamOf(chunks, 'client'))];

  it.each([
    ['of a server', servers, serve],
    ['of a client', clients, ask],
  ] as const)(`${'%s'}, ${FUZZ_BYTES} of them (${random.where})`, (_, streams, run) => {
    console.log(`${random.where} OUTLIVE_FUZZ_BYTES=${FUZZ_BYTES}`);
    let read = 0;
    for (let turn = 0; read < FUZZ_BYTES; turn++) {
      const whole = random.one(streams);
      // Of a long stream a part, which begins with whatever is there.
      const from = whole.length > 20_000 ? random.below(whole.length - 20_000) : 0;
      const stream = mutate(whole.subarray(from, from + 20_000), random);
      read += stream.length;
      run(stream, random, `${random.where}, turn ${turn}`);
    }
  });

  it('never show a password', () => {
    const login = clientStream(4096);
    for (let turn = 0; turn < 200; turn++) {
      const collector = new MessageCollector('client', LIMIT, ({ type, bytes, start, end }) => {
        if (type === LOGIN7) readLogin7(bytes, start, end);
        return false;
      });
      const mutated = mutate(login, random);
      try {
        new PacketReader('client').push(mutated, 0, mutated.length, collector);
      } catch (error) {
        expect((error as Error).message).not.toContain(PASSWORD.slice(0, 4));
        expect(error).toBeInstanceOf(ProtocolViolation);
      }
    }
  });
});
