import { readFileSync } from 'node:fs';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { runCommand } from '../../core/io/command.js';

const node = process.execPath;

async function gone(pid: number): Promise<boolean> {
  for (let tries = 0; tries < 100; tries++) {
    try {
      // A killed process that nobody has waited for yet is as good as gone.
      if (/^\S+ \(.*\) Z/.test(readFileSync(`/proc/${pid}/stat`, 'utf8'))) return true;
    } catch {
      return true;
    }
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  return false;
}

describe('running a command', () => {
  it('gives it its environment and nothing of ours, no shell and no input, and returns what it wrote', async () => {
    process.env.OUTLIVE_TEST_SECRET = 'secret';
    const script = `console.log(process.argv[1], process.env.WHO, process.env.OUTLIVE_TEST_SECRET); console.error('e');
      process.stdin.on('data', () => {}).on('end', () => console.log('no input'))`;
    const result = await runCommand([node, '-e', script, '$HOME; ls'], { env: { WHO: 'me' }, timeoutMs: 5000 });
    expect(result).toEqual({ stdout: '$HOME; ls me undefined\nno input\n', stderr: 'e\n' });
    delete process.env.OUTLIVE_TEST_SECRET;
  });

  it('says how it failed, without its arguments', async () => {
    const failing = runCommand([node, '-e', 'console.error("first\\nno such host"); process.exit(3)'], {
      timeoutMs: 5000,
    });
    await expect(failing).rejects.toMatchObject({
      code: 'OUTLIVE_COMMAND_FAILED',
      message: 'node ended with status 3; the last it said: no such host',
    });
    await expect(runCommand(['/no/such/fence', 'secret'], { timeoutMs: 1000 })).rejects.toMatchObject({
      code: 'OUTLIVE_COMMAND_NOT_STARTED',
      culprit: 'config',
      message: expect.not.stringContaining('secret'),
    });
    await expect(runCommand([], { timeoutMs: 1000 })).rejects.toMatchObject({ code: 'OUTLIVE_COMMAND_NOT_STARTED' });
    await expect(runCommand([node, 'a\0b'], { timeoutMs: 1000 })).rejects.toMatchObject({
      code: 'OUTLIVE_COMMAND_NOT_STARTED',
    });
    await expect(runCommand([node, '-e', 'process.kill(process.pid, "SIGABRT")'], { timeoutMs: 5000 })).rejects.toThrow(
      'by signal SIGABRT',
    );
  });

  it('kills the whole group when the time is over', async () => {
    const place = await mkdtemp(join(tmpdir(), 'outlive-command-'));
    const file = join(place, 'pid');
    const script = `const { spawn } = require('child_process');
      const child = spawn(process.execPath, ['-e', 'process.on("SIGTERM", () => {}); setInterval(() => {}, 1000)'], { stdio: 'inherit' });
      require('fs').writeFileSync(${JSON.stringify(file)}, String(child.pid));
      setInterval(() => {}, 1000)`;
    const started = performance.now();
    await expect(runCommand([node, '-e', script], { timeoutMs: 500 })).rejects.toMatchObject({
      code: 'OUTLIVE_COMMAND_TIMEOUT',
    });
    expect(performance.now() - started).toBeLessThan(2500);
    expect(await gone(Number(await readFile(file, 'utf8')))).toBe(true);
    await rm(place, { recursive: true });
  });

  it('ends one that writes without end, and one that is no longer wanted', async () => {
    const endless =
      'const more = () => { while (process.stdout.write("x".repeat(10000))); process.stdout.once("drain", more) }; more()';
    await expect(runCommand([node, '-e', endless], { timeoutMs: 8000, maxOutput: 50_000 })).rejects.toMatchObject({
      code: 'OUTLIVE_COMMAND_OUTPUT',
    });
    const abort = new AbortController();
    const run = runCommand([node, '-e', 'setInterval(() => {}, 1000)'], { timeoutMs: 8000, signal: abort.signal });
    setTimeout(() => abort.abort(), 50);
    await expect(run).rejects.toMatchObject({ code: 'OUTLIVE_COMMAND_ABORTED' });
    await expect(runCommand([node, '-v'], { timeoutMs: 1000, signal: abort.signal })).rejects.toMatchObject({
      code: 'OUTLIVE_COMMAND_ABORTED',
    });
  });

  it('does not wait for a process left behind that holds the output open', async () => {
    const script = `const child = require('child_process').spawn(process.execPath, ['-e', 'setTimeout(() => {}, 4000)'],
      { stdio: 'inherit', detached: true }); child.unref(); console.log('done')`;
    const started = performance.now();
    const result = await runCommand([node, '-e', script], { timeoutMs: 8000 });
    expect(result.stdout).toBe('done\n');
    expect(performance.now() - started).toBeLessThan(3000);
  });
});
