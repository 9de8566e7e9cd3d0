import { spawnSync } from 'node:child_process';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { CodedError } from '../../../contract/index.js';
import type { Host } from './lab.js';

/** Whether the program `etcd` is installed (Debian: etcd-server). */
export function etcdInstalled(): boolean {
  return spawnSync('etcd', ['--version'], { stdio: 'ignore' }).status === 0;
}

/**
 * Starts an etcd of one member on a host of a lab. It ends with the lab.
 *
 * @returns its URL for clients; rejects with OUTLIVE_LAB_FAILED when it ends before it serves
 */
export async function startEtcdOn(host: Host): Promise<string> {
  const data = join(host.lab.dir, `etcd-${host.name}`);
  mkdirSync(data, { mode: 0o700 });
  const url = `http://${host.address}:2379`;
  const peer = 'http://127.0.0.1:2380';
  const child = host.spawn(
    'etcd',
    [
      ...['--name=demo', `--data-dir=${data}`, '--logger=zap', '--log-outputs=stderr'],
      ...[`--listen-client-urls=${url}`, `--advertise-client-urls=${url}`],
      ...[`--listen-peer-urls=${peer}`, `--initial-advertise-peer-urls=${peer}`, `--initial-cluster=demo=${peer}`],
    ],
    { stdio: ['ignore', 'ignore', 'pipe'] },
  );
  const lines: string[] = [];
  await new Promise<void>((resolve, reject) => {
    const failed = (why: string) => {
      reject(new CodedError('OUTLIVE_LAB_FAILED', 'system', `etcd on ${host.name} did not start: ${why}`));
    };
    child.once('error', ({ message }) => failed(message));
    createInterface({ input: child.stderr! })
      .on('line', (line) => {
        if (line.includes('serving client traffic')) resolve();
        if (lines.push(line) > 10) lines.shift();
      })
      .on('close', () => failed(lines.join('\n')));
  });
  return url;
}
