import { monitorEventLoopDelay } from 'node:perf_hooks';
import type { Stats } from '../metrics.js';

/** Measures how busy this process is, as its statistics tell it. */
export class LoadMeter {
  private readonly delay = monitorEventLoopDelay({ resolution: 10 });
  private usage = process.cpuUsage();
  /** What was measured last, at `at`; rates per second. */
  rates = { at: 0, requests: 0, bytes: 0, requestsPerSecond: 0, bytesPerSecond: 0, cpu: 0, delay: 0 };

  constructor(private readonly stats: Stats) {}

  start(): void {
    this.delay.enable();
  }

  /** Measures anew when the last time was a second ago. */
  measure(now: number): void {
    const { rates } = this;
    const seconds = (now - rates.at) / 1000;
    if (seconds < 1) return;
    const { requests, bytesFromClients, bytesToClients } = this.stats;
    const bytes = bytesFromClients + bytesToClients;
    const { user, system } = process.cpuUsage(this.usage);
    this.usage = process.cpuUsage();
    this.rates = {
      at: now,
      requests,
      bytes,
      requestsPerSecond: rates.at === 0 ? 0 : (requests - rates.requests) / seconds,
      bytesPerSecond: rates.at === 0 ? 0 : (bytes - rates.bytes) / seconds,
      cpu: rates.at === 0 ? 0 : (user + system) / 1e6 / seconds,
      delay: this.delay.percentile(99) / 1e6 || 0,
    };
    this.delay.reset();
  }

  stop(): void {
    this.delay.disable();
  }
}
