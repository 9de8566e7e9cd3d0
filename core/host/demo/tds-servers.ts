import { type ChildProcess, execFile, fork } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { CodedError } from '../../contract/index.js';

/** Part of the repository, not of the package. */
const SOURCE = join('test', 'servers', 'tds', 'main.ts');

/** The repository that this file was built from, or stands in; null in an installed package. */
function repository(): string | null {
  const above = ['../../../', '../../../../'].map((up) => fileURLToPath(new URL(up, import.meta.url)));
  return above.find((root) => existsSync(join(root, SOURCE))) ?? null;
}

/**
 * Compiles the TDS server of the tests. Rejects with OUTLIVE_DEMO_SERVERS where there is none.
 * @param out a directory of its own, which the caller removes
 * @param source another program of the repository's
 * @returns the program, for Node
 */
export async function compileTdsServer(out: string, source = SOURCE): Promise<string> {
  const root = repository();
  if (root === null) {
    const message =
      'the demo for SQL Server needs the TDS server of the tests, which is not part of the package: run it in a clone of the repository';
    throw new CodedError('OUTLIVE_DEMO_SERVERS', 'config', message);
  }
  const compiler = join(root, 'node_modules', 'typescript', 'bin', 'tsc');
  const options = '--ignoreConfig --noCheck --rootDir . --module nodenext --target es2023 --types node'.split(' ');
  await promisify(execFile)(process.execPath, [compiler, ...options, '--outDir', out, source], { cwd: root });
  symlinkSync(join(root, 'node_modules'), join(out, 'node_modules'));
  writeFileSync(join(out, 'package.json'), '{"type":"module"}');
  return join(out, source.replace(/ts$/, 'js'));
}

/** A PostgreSQL, as far as a server before it must know it. */
interface Behind {
  readonly name: string;
  readonly host: string;
  readonly port: number;
}

/** TDS servers, each a process of its own before a PostgreSQL of the same name, on a port that it keeps. */
export class TdsServers {
  readonly #running = new Map<string, ChildProcess>();
  readonly #ports = new Map<string, number>();

  private constructor(
    private readonly out: string,
    private readonly program: string,
  ) {}

  static async compile(): Promise<TdsServers> {
    const out = mkdtempSync(join(tmpdir(), 'outlive-tds-'));
    try {
      return new TdsServers(out, await compileTdsServer(out));
    } catch (error) {
      rmSync(out, { recursive: true, force: true });
      throw error;
    }
  }

  /** Starts the one before that PostgreSQL. */
  async start({ name, host, port }: Behind): Promise<void> {
    const pg = { host, port, user: 'postgres', database: 'postgres' };
    // Its clients have no use for encryption.
    const options = {
      name,
      pg,
      tls: { cert: '', key: '' },
      encryption: 'notSupported',
      port: this.#ports.get(name) ?? 0,
    };
    const child = fork(this.program, [JSON.stringify(options)], {
      stdio: ['ignore', 'ignore', 'pipe', 'ipc'],
      execArgv: [],
    });
    this.#running.set(name, child);
    let said = '';
    child.stderr!.on('data', (chunk) => {
      said = `${said}${chunk}`.slice(-2000);
    });
    await new Promise<void>((done, fail) => {
      const ended = () => fail(new CodedError('OUTLIVE_DEMO_SERVERS', 'system', `a TDS server ended: ${said.trim()}`));
      child.once('exit', ended);
      child.on('message', (told: { tell: string; port: number }) => {
        if (told.tell !== 'listening') return;
        child.removeListener('exit', ended);
        this.#ports.set(name, told.port);
        done();
      });
    });
  }

  /** The port of the one before that PostgreSQL. */
  port(name: string): number {
    return this.#ports.get(name)!;
  }

  /** Ends it without warning. @returns resolves when it is gone */
  async kill(name: string): Promise<void> {
    const child = this.#running.get(name);
    this.#running.delete(name);
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
    const gone = new Promise((done) => child.once('exit', done));
    child.kill('SIGKILL');
    await gone;
  }

  /** Ends all of them and removes the program. */
  async stop(): Promise<void> {
    for (const name of [...this.#running.keys()]) await this.kill(name);
    rmSync(this.out, { recursive: true, force: true });
  }
}
