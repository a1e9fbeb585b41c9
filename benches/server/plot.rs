//! The figures as a picture, for the README: requests per second of each server, one panel for each shape.

use std::path::Path;

use plotters::prelude::*;

use crate::shared::load::Shape;
use crate::shared::report::Spread;

/// What one shape has shown: of each server the median, the least and the most.
pub(crate) struct Panel<'a> {
    pub(crate) shape: Shape,
    pub(crate) rates: Vec<(&'a str, Spread)>,
}

const SIZE: (u32, u32) = (880, 420);
/// Ours first.
const COLOURS: [RGBColor; 4] =
    [RGBColor(168, 72, 31), RGBColor(120, 144, 170), RGBColor(84, 112, 145), RGBColor(160, 160, 160)];
const INK: RGBColor = RGBColor(60, 60, 60);

pub(crate) fn draw(path: &Path, panels: &[Panel<'_>]) -> anyhow::Result<()> {
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let title = ("sans-serif", 17).into_font().color(&INK);
    let area = area.titled("requests/s, a task for each; bars are medians, whiskers the least and the most", title)?;
    let columns = panels.len().div_ceil(2).max(1);
    for (panel, area) in panels.iter().zip(area.split_evenly((2, columns))) {
        draw_panel(panel, &area)?;
    }
    area.present()?;
    Ok(())
}

fn draw_panel<B: DrawingBackend>(panel: &Panel<'_>, area: &DrawingArea<B, plotters::coord::Shift>) -> anyhow::Result<()>
where
    B::ErrorType: 'static,
{
    let most = panel.rates.iter().map(|(_, spread)| spread.most).fold(0.0, f64::max);
    let servers = panel.rates.len();
    let text = |size: u32| ("sans-serif", size).into_font().color(&INK);
    let mut chart = ChartBuilder::on(area)
        .caption(
            format!("{} connections, {} in flight on each", panel.shape.connections, panel.shape.in_flight),
            text(14),
        )
        .margin(8)
        .margin_right(70)
        .y_label_area_size(110)
        .build_cartesian_2d(0.0..most, (0..servers).into_segmented())?;
    let name_of = |place: &SegmentValue<usize>| match place {
        SegmentValue::CenterOf(row) => panel.rates.get(servers - 1 - row).map_or("", |rate| rate.0).to_owned(),
        _ => String::new(),
    };
    let mut mesh = chart.configure_mesh();
    mesh.disable_mesh().disable_x_axis().y_labels(servers).y_label_formatter(&name_of);
    mesh.axis_style(WHITE).label_style(text(13)).draw()?;
    for (column, (_, spread)) in panel.rates.iter().enumerate() {
        // The first is drawn on top.
        let row = servers - 1 - column;
        let colour = COLOURS[column % COLOURS.len()];
        let (from, to) = (SegmentValue::Exact(row), SegmentValue::Exact(row + 1));
        let mut bar = Rectangle::new([(0.0, from), (spread.median, to)], colour.filled());
        bar.set_margin(3, 3, 0, 0);
        let middle = SegmentValue::CenterOf(row);
        let whisker = PathElement::new(vec![(spread.least, middle.clone()), (spread.most, middle.clone())], INK);
        let label = Text::new(thousands(spread.median), (spread.most, middle), text(12));
        chart.draw_series(std::iter::once(bar))?;
        chart.draw_series(std::iter::once(whisker))?;
        chart.draw_series(std::iter::once(label))?;
    }
    Ok(())
}

fn thousands(rate: f64) -> String {
    if rate >= 1e6 { format!(" {:.2} M", rate / 1e6) } else { format!(" {:.0} k", rate / 1e3) }
}
