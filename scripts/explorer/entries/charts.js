export { init, use } from "echarts/core";
import { use } from "echarts/core";
import { BarChart, LineChart, ScatterChart } from "echarts/charts";
import {
  AriaComponent, BrushComponent, DataZoomInsideComponent, GridComponent, LegendComponent, VisualMapComponent,
} from "echarts/components";
import { CanvasRenderer } from "echarts/renderers";

use([
  AriaComponent, BarChart, BrushComponent, CanvasRenderer, DataZoomInsideComponent, GridComponent, LegendComponent,
  LineChart, ScatterChart, VisualMapComponent,
]);
