import tds from '../../codecs/tds/index.js';
import type { LoginFacts } from '../../codecs/tds/login.js';
import { TDS_7_4 } from '../../codecs/tds/version.js';
import { done } from '../../codecs/tds/write.js';
import type { MadeUp } from './engine.js';
import { MadeUpTdsDatabase, MadeUpTdsServer } from './tds-engine.js';

/**
 * TDS for the rigs of the engine.
 * @param announces whether servers tell of transactions that text begins and ends
 * @param sizes packet sizes of one server after the other, in turn
 */
export function tdsMadeUp(announces: boolean, sizes: readonly number[]): MadeUp<MadeUpTdsDatabase> {
  return {
    codec: tds,
    greeting: {
      kind: 'session',
      identity: { user: 'sa', database: '', secret: null },
      startup: { login: { tdsVersion: 0x74000004 }, dialect: TDS_7_4, strict: false },
      passThrough: null,
      tls: false,
    },
    shared: () => ({ announcesText: announces }),
    database: () => new MadeUpTdsDatabase(),
    connect: (database) => {
      const packetSize = sizes[database.servers % sizes.length];
      const server = new MadeUpTdsServer(database, packetSize, announces);
      const facts: LoginFacts = {
        dialect: TDS_7_4,
        packetSize,
        spid: 7,
        tokens: done({}, TDS_7_4),
        columnEncryption: false,
        dataClassification: 0,
      };
      return { login: { cancelKey: null, backendId: '7', facts }, feed: (bytes) => server.feed(bytes) };
    },
    // Nothing in the conversations has a proof.
    committed: () => false,
  };
}
