import { describe, expect, it } from 'vitest';
import { refusal } from '../kit/tds.js';
import { type TdsStage, useTdsStage } from '../kit/tds-stage.js';

const HOW = 'SELECT encrypt_option AS e FROM sys.dm_exec_connections WHERE session_id = @@SPID';

/** A client that encrypts as it is told; gives whether its server's connection is encrypted, and goes on across a failover. */
async function works(stage: TdsStage, encrypt: boolean | 'strict'): Promise<unknown> {
  const client = await stage.connect({
    encrypt: encrypt as boolean,
    serverName: 'localhost',
    cryptoCredentialsDetails: { ca: stage.gateway.cert },
  });
  const [{ e }] = (await client.batch(HOW)).rows;
  const long = "SELECT REPLICATE('x', 30000) AS x, REPLICATE('y', 30000) AS y";
  const before = (await client.batch(long)).rows;
  expect((await client.batch(long)).rows).toEqual(before);
  return e;
}

describe('a listener that allows TLS, before servers without it', () => {
  const stage = useTdsStage({ encryption: 'notSupported' }, { tls: 'allow' });

  it.each([false, true, 'strict'] as const)('meets a client with encrypt: %s', async (encrypt) => {
    expect(await works(stage, encrypt)).toBe('FALSE');
  });
});

describe('a listener that demands TLS, before servers that demand it', () => {
  const stage = useTdsStage({ encryption: 'required' }, { tls: 'require', serverTls: 'require' });

  it.each([true, 'strict'] as const)('meets a client with encrypt: %s', async (encrypt) => {
    expect(await works(stage, encrypt)).toBe('TRUE');
  });

  it('refuses a client without TLS', async () => {
    expect((await refusal(stage.connect({ encrypt: false }))).message).toMatch(/encrypt/);
  });

  it('keeps a session across a failover', async () => {
    const client = await stage.connect({ encrypt: true });
    await client.batch('CREATE TABLE kept (id int PRIMARY KEY)');
    await client.begin();
    await client.sql('INSERT INTO kept VALUES (1)');
    await stage.kill();
    await client.sql('INSERT INTO kept VALUES (2)');
    await client.commit();
    expect((await client.sql('SELECT id FROM kept ORDER BY id')).rows).toEqual([{ id: 1 }, { id: 2 }]);
    expect(client.lost).toEqual([]);
  });
});

describe('a listener without TLS, before servers that encrypt for those who ask', () => {
  const stage = useTdsStage({ encryption: 'off' }, { serverTls: 'prefer' });

  it('asks them to, whatever its client does', async () => {
    expect(await works(stage, false)).toBe('TRUE');
  });

  it('has none for a client that wants it', async () => {
    await expect(stage.connect({ encrypt: true })).rejects.toThrow();
  });
});
