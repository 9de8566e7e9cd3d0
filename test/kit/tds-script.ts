import { packets, RPC, SQL_BATCH, TRANSACTION_MANAGER } from '../../codecs/tds/packet.js';
import {
  TM_BEGIN_XACT,
  TM_COMMIT_XACT,
  TM_ROLLBACK_XACT,
  writeSqlBatch,
  writeTransactionRequest,
} from '../../codecs/tds/request.js';
import { integerParameter, SP_EXECUTE, SP_PREPARE, textParameter, writeRpc } from '../../codecs/tds/rpc.js';
import { CLIENT_SIZE, type Cut, type TdsEngine, WHOLE } from './tds-engine.js';

/** What a client knows of its transaction and its handles, as drivers do. */
export class TdsScriptClient {
  descriptor = 0n;
  handle = 0;

  constructor(readonly engine: TdsEngine) {}

  /** Sends a message and reads its answer. */
  say(type: number, payload: Uint8Array, cut: Cut = WHOLE, status = 0): Buffer[] {
    const before = this.engine.messages().length;
    this.engine.say(packets(type, payload, CLIENT_SIZE, status), cut);
    const heard = this.engine.messages().slice(before);
    for (const message of heard) this.read(message);
    return heard;
  }

  private read(message: Buffer): void {
    // ENVCHANGE 8 to 10 and the only kind of RETURNVALUE, wherever they stand: nothing else here looks like them.
    const begun = message.indexOf(Buffer.from([0xe3, 11, 0, 8, 8]));
    if (begun >= 0) this.descriptor = message.readBigUInt64LE(begun + 5);
    if (message.includes(Buffer.from([0xe3, 11, 0, 9, 0, 8])) || message.includes(Buffer.from([0xe3, 11, 0, 10, 0, 8])))
      this.descriptor = 0n;
    const value = message.indexOf(Buffer.from([0xac, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0x26, 4, 4]));
    if (value >= 0) this.handle = message.readInt32LE(value + 14);
  }

  /** A step of a script. */
  step(text: string, cut?: Cut): Buffer[] {
    if (text.startsWith('prepare')) {
      const statement = textParameter(text.split(' ').slice(1).join(' ') || 'select 2');
      const parameters = [integerParameter(null, '', 1), textParameter(null), statement];
      return this.say(RPC, writeRpc(this.descriptor, [{ procedure: SP_PREPARE, parameters }]), cut);
    }
    switch (text) {
      case 'tm begin':
        return this.say(
          TRANSACTION_MANAGER,
          writeTransactionRequest(this.descriptor, { type: TM_BEGIN_XACT, isolation: 0 }),
          cut,
        );
      case 'tm commit':
      case 'tm rollback': {
        const type = text === 'tm commit' ? TM_COMMIT_XACT : TM_ROLLBACK_XACT;
        return this.say(TRANSACTION_MANAGER, writeTransactionRequest(this.descriptor, { type }), cut);
      }
      case 'execute': {
        const parameters = [integerParameter(this.handle)];
        return this.say(RPC, writeRpc(this.descriptor, [{ procedure: SP_EXECUTE, parameters }]), cut);
      }
      default:
        return this.say(SQL_BATCH, writeSqlBatch(this.descriptor, text), cut);
    }
  }
}

/**
 * What the client hears, but for what each server says in its own way: INFO, which is not compared, and descriptors and handles, which are
 * those of the server that gave them out first.
 */
export const words = (engine: TdsEngine): string[] =>
  engine.messages().map((message) =>
    message
      .toString('hex')
      .replaceAll(/73006500720076006500720020003.00/g, 'server')
      .replaceAll(/(?<=e30b00(0808|090008|0a0008)).{16}/g, 'descriptor')
      .replaceAll(/(?<=ac00000001000000000000260404).{8}/g, 'handle'),
  );

/** Runs a script through an engine; gives what its client heard. */
export function run(script: readonly string[], engine: TdsEngine, cut?: Cut): string[] {
  const client = new TdsScriptClient(engine);
  for (const text of script) client.step(text, cut);
  return words(engine);
}
