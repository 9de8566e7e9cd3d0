#!/usr/bin/env node
import { fileURLToPath } from 'node:url';
import { type Io, main, type Parts } from './cli.js';

const io: Io = {
  self: [process.execPath, fileURLToPath(import.meta.url)],
  end: () => process.exit(0),
  out: (text) => void process.stdout.write(text),
  err: (text) => void process.stderr.write(text),
  env: process.env,
  columns: Math.min(process.stdout.columns ?? 100, 140),
  stopped: () =>
    new Promise((resolve) => {
      let told = false;
      for (const signal of ['SIGTERM', 'SIGINT'] as const) {
        process.on(signal, () => {
          // Whoever asks twice does not want to wait for the sessions to finish.
          if (told) process.exit(1);
          told = true;
          resolve(signal);
        });
      }
    }),
};

const parts: Parts = {
  gateway: () => import('./gateway.js'),
  demo: () => import('./demo/index.js'),
  keeper: () => import('./keeper.js'),
};

process.exitCode = await main(process.argv.slice(2), io, parts);
