import { execFile, spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { tempDir } from './servers.js';
import { TdsClient } from './tds.js';
import type { TdsEnd } from './tds-scenarios.js';

const found = spawnSync('tsql', ['-C'], { encoding: 'utf8' });
const why = found.error === undefined ? '' : ' (no tsql, bsqldb and freebcp: install freetds-bin)';

const LOGIN = ['-S', 'tds', '-U', 'sa', '-P', 'Outlive.1'];

/** Runs a program of FreeTDS with a text as its input. Gives what it writes; throws when it hangs. */
function freetds(
  program: string,
  args: string[],
  port: number,
  { version = '7.4', encryption = 'off', input = '' } = {},
): Promise<string> {
  const conf = join(tempDir(), 'freetds.conf');
  const lines = [
    '[tds]',
    '\thost = 127.0.0.1',
    `\tport = ${port}`,
    `\ttds version = ${version}`,
    '\tclient charset = UTF-8',
    `\tencryption = ${encryption}`,
  ];
  writeFileSync(conf, `${lines.join('\n')}\n`);
  return new Promise((done, fail) => {
    const child = execFile(
      program,
      args,
      { env: { ...process.env, FREETDSCONF: conf, TDSVER: version, LC_ALL: 'C.UTF-8' }, timeout: 30_000 },
      (error, stdout, stderr) => {
        const all = `${stdout}${stderr}`;
        if (error?.killed) fail(new Error(`${program} hangs: ${all}`));
        else done(all);
      },
    );
    child.stdin!.end(input);
  });
}

/**
 * Tests with the programs of FreeTDS, where they are installed.
 * @param start gives what they connect to; transactions that text begins are told of or not
 * @param encrypted what of a connection the server sees encrypted, by what FreeTDS is told to do
 */
export function freetdsScenarios(
  start: (textTransactions: boolean) => Promise<TdsEnd> | TdsEnd,
  encrypted: Readonly<Record<string, string>> = { off: 'nothing', request: 'login', require: 'all' },
): void {
  describe.skipIf(why !== '')(`FreeTDS${why}`, () => {
    it.each([
      ['7.1', 'off', true],
      ['7.2', 'off', false],
      ['7.3', 'off', true],
      ['7.4', 'off', false],
      ['7.4', 'request', true],
      ['7.4', 'require', true],
    ])(
      'works with TDS %s, encryption %s and transactions of texts announced: %s',
      async (version, encryption, told) => {
        const { port, server } = await start(told);
        const from = server.events.length;
        const batches = [
          'drop table if exists ft; create table ft (id int primary key, v varchar(20) null, m varchar(max), d datetime, n decimal(9,2))',
          'begin tran',
          "insert into ft values (80, 'ft', 'max', '2024-01-01', 1.25)",
          'select @@trancount as count1',
          'commit',
          "begin tran\ninsert into ft values (80, 'dup', null, null, null)\nselect @@trancount as count2",
          'if @@trancount > 0 rollback',
          'select id, v, m, d, n from ft',
          'declare @b int, @s nvarchar(50) exec p_out 3, @b output, @s output select @b, @s',
          "select cast('2024-02-29' as date) as day, N'☃' as snow, newid() as id",
        ];
        const input = `${batches.join('\ngo\n')}\ngo\nexit\n`;
        const output = await freetds('tsql', LOGIN, port, { version, encryption, input });
        expect(output).toContain('Msg 2627 (severity 14, state 1)');
        expect(output).toMatch(/count1\n1\n/);
        expect(output).toMatch(/count2\n1\n/);
        expect(output).toMatch(/80\tft\tmax\tJan +1 2024 12:00(:00)?AM.*\t1.25\n/);
        expect(output).toContain('6\tgot 3');
        expect(output).toContain('☃');
        const wanted = { '7.1': '71000001', '7.2': '72090002', '7.3': '730b0003', '7.4': '74000004' }[version];
        expect(server.events.slice(from).filter(({ kind }) => kind === 'login')).toContainEqual(
          expect.objectContaining({ version: wanted, encrypted: encrypted[encryption] }),
        );
      },
    );

    it('works by way of DB-Library', async () => {
      const { port } = await start(true);
      const input =
        "create table #b (id int, v nvarchar(10))\ngo\ninsert into #b values (1, 'a')\ninsert into #b values (2, null)\ngo\nselect * from #b order by id\ngo\n";
      const output = await freetds('bsqldb', LOGIN, port, { input });
      expect(output).toMatch(/1 +a/);
      expect(output).toMatch(/2 +NULL/);
    });

    it('loads in bulk', async () => {
      const { port } = await start(true);
      const client = await TdsClient.connect(port);
      await client.batch(
        'DROP TABLE IF EXISTS bcp; CREATE TABLE bcp (id int NOT NULL, name varchar(20), n decimal(9, 2))',
      );
      const file = join(tempDir(), 'rows');
      writeFileSync(file, '1,one,1.50\n2,,2.25\n');
      const output = await freetds('freebcp', ['app..bcp', 'in', file, ...LOGIN, '-c', '-t', ','], port);
      expect(output).toContain('2 rows copied');
      expect((await client.sql('SELECT * FROM bcp ORDER BY id')).rows).toEqual([
        { id: 1, name: 'one', n: 1.5 },
        { id: 2, name: null, n: 2.25 },
      ]);
      await client.close();
    });
  });
}
