import { type ChildProcess, spawn } from 'node:child_process';
import { chmodSync, existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { DEMO_KEYS } from '../kit/demo.js';
import { compiled } from '../kit/gateway-process.js';
import { describeLab } from '../kit/pair-lab.js';
import { eventually } from '../kit/servers.js';

const CLIENTS = 8;

/** Hosts of the lab that a process has made. */
function hostsOf(pid: number): string[] {
  return existsSync('/run/netns') ? readdirSync('/run/netns').filter((name) => name.startsWith(`ol${pid}x`)) : [];
}

interface Run {
  readonly child: ChildProcess;
  /** What it printed so far. */
  readonly out: () => string;
  readonly ended: Promise<{ code: number | null; out: string; err: string }>;
}

function demo(args: readonly string[], user?: { uid: number; gid: number }): Run {
  const program = compiled();
  // A build of the test's own is closed to other users.
  if (user !== undefined) chmodSync(program, 0o755);
  const bin = join(program, 'core', 'host', 'bin.js');
  const child = spawn(process.execPath, [bin, 'demo', '--pair', '--clients', String(CLIENTS), ...args], {
    cwd: '/',
    stdio: ['ignore', 'pipe', 'pipe'],
    ...user,
  });
  const text = { out: '', err: '' };
  child.stdout!.setEncoding('utf8').on('data', (more: string) => (text.out += more));
  child.stderr!.setEncoding('utf8').on('data', (more: string) => (text.err += more));
  const ended = new Promise<{ code: number | null; out: string; err: string }>((resolve) =>
    child.once('close', (code) => resolve({ code, ...text })),
  );
  return { child, out: () => text.out, ended };
}

describeLab('the demo of the pair', () => {
  it('loses a gateway process, a gateway host and the primary, moves the load, and every client goes on', async () => {
    const { child, ended } = demo(['--json']);
    const { code, out, err } = await ended;
    expect({ code, err }).toEqual({ code: 0, err: '' });
    const result = JSON.parse(out.trimEnd().split('\n').at(-1)!);
    expect(Object.keys(result)).toEqual([
      ...DEMO_KEYS,
      'connectionsKept',
      'connectionsReset',
      'takeoverMsP50',
      'takeoverMsMax',
    ]);
    expect(result).toMatchObject({ rounds: 4, clients: CLIENTS, clientErrors: 0, duplicates: 0, lost: 0, ok: true });
    // Two faults, each with a way back, and a move.
    expect(result).toMatchObject({ connectionsKept: 5 * CLIENTS, connectionsReset: 0 });
    expect(result.transactions).toBeGreaterThan(CLIENTS);
    expect(result.replays).toBeGreaterThan(0);
    expect(result.takeoverMsMax).toBeGreaterThanOrEqual(result.takeoverMsP50);
    expect(hostsOf(child.pid!)).toEqual([]);
  }, 180_000);

  it('leaves nothing when it is interrupted', async () => {
    const { child, out, ended } = demo([]);
    await eventually(() => out().includes('\n1. ') || child.exitCode !== null, { timeoutMs: 90_000 });
    expect(hostsOf(child.pid!).length).toBeGreaterThan(5);
    child.kill('SIGINT');
    const { code, out: said, err } = await ended;
    expect({ code, err }).toEqual({ code: 1, err: '' });
    expect(said).toMatch(/\nInterrupted: all hosts are removed\.\n$/);
    expect(hostsOf(child.pid!)).toEqual([]);
  }, 180_000);
});

describe('the demo of the pair without root', () => {
  it.each([
    [[], /^The demo of the pair needs hosts of its own: .+\. Nothing was done\.\n$/],
    [['--json'], /^\{"skipped":".+"\}\n$/],
  ])('says that it needs it and succeeds: %j', async (args, said) => {
    const root = process.getuid?.() === 0;
    const { code, out, err } = await demo(args, root ? { uid: 65534, gid: 65534 } : undefined).ended;
    expect({ code, err }).toEqual({ code: 0, err: '' });
    expect(out).toMatch(said);
  });
});
