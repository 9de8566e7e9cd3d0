import {
  ATTENTION,
  MessageCollector,
  PacketReader,
  packets,
  RPC,
  SQL_BATCH,
  TRANSACTION_MANAGER,
} from '../../codecs/tds/packet.js';
import {
  TM_BEGIN_XACT,
  TM_COMMIT_XACT,
  TM_ROLLBACK_XACT,
  writeSqlBatch,
  writeTransactionRequest,
} from '../../codecs/tds/request.js';
import { integerParameter, SP_EXECUTE, SP_PREPARE, textParameter, writeRpc } from '../../codecs/tds/rpc.js';
import { CLIENT_SIZE, type Cut, type TdsEngine, WHOLE } from './tds-engine.js';

/** Conversations of a TDS client with a made-up server. */

/** What a client knows of its transaction and its handles, as drivers do. */
export class ScriptedClient {
  descriptor = 0n;
  handle = 0;

  /** Takes a message of its server. */
  read(message: Buffer): void {
    // ENVCHANGE 8 to 10 and the only kind of RETURNVALUE, wherever they stand: nothing else here looks like them.
    const begun = message.indexOf(Buffer.from([0xe3, 11, 0, 8, 8]));
    if (begun >= 0) this.descriptor = message.readBigUInt64LE(begun + 5);
    if (message.includes(Buffer.from([0xe3, 11, 0, 9, 0, 8])) || message.includes(Buffer.from([0xe3, 11, 0, 10, 0, 8])))
      this.descriptor = 0n;
    const value = message.indexOf(Buffer.from([0xac, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0x26, 4, 4]));
    if (value >= 0) this.handle = message.readInt32LE(value + 14);
  }

  /** What it sends for a step of a script: a text, or `tm begin`, `tm commit`, `tm rollback`, `prepare` and perhaps a statement, `execute`, `attention`. */
  message(step: string): Buffer {
    const [type, payload] = this.#payload(step);
    return Buffer.from(packets(type, payload, CLIENT_SIZE));
  }

  #payload(step: string): [number, Uint8Array] {
    const { descriptor, handle } = this;
    if (step.startsWith('prepare')) {
      const statement = textParameter(step.split(' ').slice(1).join(' ') || 'select 2');
      const parameters = [integerParameter(null, '', 1), textParameter(null), statement];
      return [RPC, writeRpc(descriptor, [{ procedure: SP_PREPARE, parameters }])];
    }
    switch (step) {
      case 'tm begin':
        return [TRANSACTION_MANAGER, writeTransactionRequest(descriptor, { type: TM_BEGIN_XACT, isolation: 0 })];
      case 'tm commit':
        return [TRANSACTION_MANAGER, writeTransactionRequest(descriptor, { type: TM_COMMIT_XACT })];
      case 'tm rollback':
        return [TRANSACTION_MANAGER, writeTransactionRequest(descriptor, { type: TM_ROLLBACK_XACT })];
      case 'execute':
        return [RPC, writeRpc(descriptor, [{ procedure: SP_EXECUTE, parameters: [integerParameter(handle)] }])];
      case 'attention':
        return [ATTENTION, new Uint8Array(0)];
      default:
        return [SQL_BATCH, writeSqlBatch(descriptor, step)];
    }
  }
}

/** The same with an engine that it talks to. */
export class TdsScriptClient extends ScriptedClient {
  constructor(readonly engine: TdsEngine) {
    super();
  }

  /** Sends a message and reads its answer. */
  say(type: number, payload: Uint8Array, cut: Cut = WHOLE, status = 0): Buffer[] {
    return this.#send(packets(type, payload, CLIENT_SIZE, status), cut);
  }

  /** A step of a script. */
  step(text: string, cut: Cut = WHOLE): Buffer[] {
    return this.#send(this.message(text), cut);
  }

  #send(bytes: Uint8Array, cut: Cut): Buffer[] {
    const before = this.engine.messages().length;
    this.engine.say(bytes, cut);
    const heard = this.engine.messages().slice(before);
    for (const message of heard) this.read(message);
    return heard;
  }
}

/** Runs a script through an engine; gives what its client heard. */
export function run(script: readonly string[], engine: TdsEngine, cut?: Cut): string[] {
  const client = new TdsScriptClient(engine);
  for (const text of script) client.step(text, cut);
  return words(engine.messages());
}

/** Sessions, as the steps that a client takes; between two of them it waits. Nothing in them is ever in doubt. */
export const SCRIPTS: Readonly<Record<string, readonly string[]>> = {
  reads: ['select 3', 'print', 'select fail', 'select 0', 'select long', 'select 1'],
  'a transaction': [
    'tm begin',
    'insert a',
    'select 2',
    'select fail',
    'print',
    'insert b',
    'select 1',
    'tm rollback',
    'select 1',
  ],
  'a transaction in text': [
    'begin tran',
    'insert a',
    'begin tran',
    'select 2',
    'commit',
    'select 1',
    'rollback',
    'select 1',
  ],
  'a long answer in a transaction': ['tm begin', 'insert a', 'select long', 'select 1', 'tm rollback'],
  'prepared statements': ['prepare', 'execute', 'tm begin', 'execute', 'prepare', 'execute', 'tm rollback', 'execute'],
  settings: ['SET LOCK_TIMEOUT 5', 'USE other', 'select 1', 'tm begin', 'SET TEXTSIZE 7', 'tm rollback', 'select 2'],
};

/** Payloads of the whole messages in what a client heard. */
export function messagesIn(heard: Uint8Array): Buffer[] {
  const found: Buffer[] = [];
  const collector = new MessageCollector('server', 1e8, ({ bytes, start, end }) => {
    found.push(Buffer.from(bytes.slice(start, end)));
    return false;
  });
  new PacketReader('server').push(heard, 0, heard.length, collector);
  return found;
}

/**
 * Messages as text, but for what each server says in its own way: INFO, which is not compared, and descriptors and handles, which are
 * those of the server that gave them out first.
 */
export const words = (messages: readonly Buffer[]): string[] =>
  messages.map((message) =>
    message
      .toString('hex')
      .replaceAll(/73006500720076006500720020003.00/g, 'server')
      .replaceAll(/(?<=e30b00(0808|090008|0a0008)).{16}/g, 'descriptor')
      .replaceAll(/(?<=ac00000001000000000000260404).{8}/g, 'handle'),
  );
