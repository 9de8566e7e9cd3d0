import { type ChildProcess, fork, type StdioOptions } from 'node:child_process';
import type { Host } from '../../core/host/demo/lab/lab.js';
import { compileTdsServer } from '../../core/host/demo/tds-servers.js';
import type { Ask, Told } from '../servers/tds/main.js';
import type { Gate, Place, TdsEvent, TdsOptions } from '../servers/tds/server.js';
import { tempDir } from './servers.js';

const programs = new Map<string, Promise<string>>();

/** A program of the repository as JavaScript, which Node needs, in a directory that goes away after the tests of this file. */
export function compiledProgram(source: string): Promise<string> {
  const known = programs.get(source) ?? compileTdsServer(tempDir(), source);
  programs.set(source, known);
  return known;
}

/** A TDS server in a process of its own. */
export class TdsProcess {
  readonly events: TdsEvent[] = [];
  readonly #reached = new Map<number, (spid: number) => void>();
  readonly #listeners = new Set<(event: TdsEvent) => void>();
  #gates = 0;
  port = 0;

  private constructor(readonly child: ChildProcess) {}

  /** @param host of a lab; without one the server is a process beside this one */
  static async start(options: TdsOptions, host?: Host): Promise<TdsProcess> {
    const file = await compiledProgram('test/servers/tds/main.ts');
    const told = JSON.stringify(options);
    const stdio: StdioOptions = ['ignore', 'inherit', 'inherit', 'ipc'];
    const child =
      host === undefined
        ? fork(file, [told], { stdio, execArgv: [] })
        : host.spawn(process.execPath, [file, told], { stdio, env: { ...process.env, NODE_OPTIONS: '' } });
    const made = new TdsProcess(child);
    await new Promise<void>((done, fail) => {
      child.once('exit', (code) => fail(new Error(`the TDS server ended with ${code}`)));
      child.on('message', (told: Told) => {
        if (told.tell === 'listening') {
          made.port = told.port;
          done();
        } else if (told.tell === 'reached') made.#reached.get(told.id)?.(told.spid);
        else {
          made.events.push(told.event);
          for (const listener of [...made.#listeners]) listener(told.event);
        }
      });
    });
    child.removeAllListeners('exit');
    return made;
  }

  #ask(ask: Ask): void {
    if (this.child.connected) this.child.send(ask);
  }

  /** Holds the next session that comes to a place. See TdsServer.hold. */
  hold(place: Place, { autocommit = false }: { autocommit?: boolean } = {}): Gate {
    const id = ++this.#gates;
    const reached = new Promise<number>((done) => this.#reached.set(id, done));
    this.#ask({ ask: 'hold', id, place, autocommit });
    return { reached, release: () => this.#ask({ ask: 'release', id }) };
  }

  drop(spid: number): void {
    this.#ask({ ask: 'drop', spid });
  }

  /** The first event that fits, of those that were and those to come. */
  waitFor(fits: (event: TdsEvent) => boolean, timeoutMs = 10_000): Promise<TdsEvent> {
    const found = this.events.find(fits);
    if (found !== undefined) return Promise.resolve(found);
    return new Promise((done, fail) => {
      const timer = setTimeout(() => {
        this.#listeners.delete(listener);
        fail(new Error(`TDS process: no such event within ${timeoutMs} ms`));
      }, timeoutMs);
      const listener = (event: TdsEvent) => {
        if (!fits(event)) return;
        clearTimeout(timer);
        this.#listeners.delete(listener);
        done(event);
      };
      this.#listeners.add(listener);
    });
  }

  /** SIGKILL; its transactions are left to PostgreSQL. */
  async kill(): Promise<void> {
    if (this.child.exitCode !== null || this.child.signalCode !== null) return;
    const gone = new Promise((done) => this.child.once('exit', done));
    this.child.kill('SIGKILL');
    await gone;
  }
}
